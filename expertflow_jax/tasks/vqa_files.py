"""VQA v2's official files: questions and annotations JSON, COCO images.

DATA/vqa_v2/v2_OpenEnded_mscoco_val2014_questions.json, v2_mscoco_val2014_annotations.json, val2014/COCO_val2014_*.jpg;
test2015 and test-dev2015 have questions alone, and share the images of test2015.
"""

from pathlib import Path
from typing import Any

from expertflow_jax.errors import InputError
from expertflow_jax.tasks.files import field, read_json
from expertflow_jax.tasks.questions import Question

SOURCE = "https://visualqa.org/download.html"
IMAGES = "https://cocodataset.org/#download"
ANNOTATORS = 10
SPLITS = {"train": "train2014", "val": "val2014", "test-dev": "test-dev2015", "test": "test2015"}
_UNANNOTATED = ("test-dev", "test")


def split_name(split: str) -> str:
    """The split that is meant by its name here or by the official one ("val2014"); raises InputError for another."""
    if split in SPLITS:
        return split
    for name, official in SPLITS.items():
        if split == official:
            return name
    raise InputError(f"vqa_v2: no split {split!r}; known: {', '.join([*SPLITS, *SPLITS.values()])}")


def is_annotated(split: str) -> bool:
    """Whether the split's answers are public."""
    return split not in _UNANNOTATED


def questions_file(data_dir: Path, split: str) -> Path:
    """Where a split's questions lie."""
    return data_dir / "vqa_v2" / f"v2_OpenEnded_mscoco_{SPLITS[split]}_questions.json"


def annotations_file(data_dir: Path, split: str) -> Path:
    """Where a split's answers lie."""
    return data_dir / "vqa_v2" / f"v2_mscoco_{SPLITS[split]}_annotations.json"


def image_folder(data_dir: Path, split: str) -> Path:
    """Where a split's images lie."""
    return data_dir / "vqa_v2" / SPLITS[split].replace("-dev", "")


def image_name(split: str, image_id: int) -> str:
    """COCO's file name."""
    return f"COCO_{SPLITS[split].replace('-dev', '')}_{image_id:012d}.jpg"


def read_questions(data_dir: Path, split: str) -> list[Question]:
    """Questions joined with their annotations, in the order of the questions file.

    Returns:
      Questions whose image is a file name; `target` is {"answers": ten, "answer_type"}, or None without annotations.

    Raises:
      InputError: a file is missing, not JSON, empty, or lacks a key; a question without annotation or the reverse; a
        question number that occurs twice; not ten answers.
    """
    path = questions_file(data_dir, split)
    annotated = _annotations(annotations_file(data_dir, split)) if is_annotated(split) else None
    checked: dict[int, Question] = {}
    for number, row in enumerate(_rows(path, "questions")):
        where = f"question {number}"
        question_id = field(path, where, row, "question_id", int)
        if question_id in checked:
            raise InputError(f"{path}: {where}: question_id {question_id} occurs twice")
        if annotated is not None and question_id not in annotated:
            raise InputError(
                f"{annotations_file(data_dir, split)}: no annotation of question {question_id}; "
                "the two files do not match"
            )
        target, groups = (None, {}) if annotated is None else annotated[question_id]
        image_id = field(path, where, row, "image_id", int)
        checked[question_id] = Question(
            id=str(question_id),
            text=field(path, where, row, "question", str),
            image=image_name(split, image_id),
            target=target,
            groups=groups,
            cluster=str(image_id),
        )
    if annotated is not None and (left := annotated.keys() - checked.keys()):
        raise InputError(f"{path}: no question {min(left)}, which is annotated; the two files do not match")
    return list(checked.values())


def _annotations(path: Path) -> dict[int, tuple[dict[str, Any], dict[str, str]]]:
    """Question number -> (target, groups)."""
    annotated: dict[int, tuple[dict[str, Any], dict[str, str]]] = {}
    for number, annotation in enumerate(_rows(path, "annotations")):
        where = f"annotation {number}"
        question_id = field(path, where, annotation, "question_id", int)
        if question_id in annotated:
            raise InputError(f"{path}: {where}: question {question_id} is annotated twice")
        answers = field(path, where, annotation, "answers", list)
        if len(answers) != ANNOTATORS:
            raise InputError(f"{path}: {where}: {len(answers)} answers, the metric needs {ANNOTATORS}")
        in_answer = f"{where}, an answer"
        target = {
            "answers": [field(path, in_answer, answer, "answer", str) for answer in answers],
            "answer_type": field(path, where, annotation, "answer_type", str),
        }
        question_type = field(path, where, annotation, "question_type", str)
        annotated[question_id] = target, {"question_type": question_type, "answer_type": target["answer_type"]}
    return annotated


def _rows(path: Path, key: str) -> list[Any]:
    rows = field(path, "the file", read_json(path, SOURCE), key, list)
    if not rows:
        raise InputError(f"{path}: it has no {key}; download it again from {SOURCE}")
    return rows
