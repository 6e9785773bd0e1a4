"""VQA v2's official files: questions and annotations JSON, COCO images.

DATA/vqa_v2/v2_OpenEnded_mscoco_val2014_questions.json, v2_mscoco_val2014_annotations.json, val2014/COCO_val2014_*.jpg
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from expertflow_jax.errors import InputError
from expertflow_jax.tasks.files import field, read_json, rgb_bytes

SOURCE = "https://visualqa.org/download.html"
IMAGES = "https://cocodataset.org/#download"
ANNOTATORS = 10
SPLITS = {"train": "train2014", "val": "val2014"}


def official_files(data_dir: Path, split: str) -> tuple[Path, Path, Path]:
    """(questions, annotations, image folder) of a split; raises InputError for an unknown one."""
    if split not in SPLITS:
        raise InputError(f"vqa_v2: no split {split!r}; known: {', '.join(SPLITS)}")
    part = SPLITS[split]
    folder = data_dir / "vqa_v2"
    return (
        folder / f"v2_OpenEnded_mscoco_{part}_questions.json",
        folder / f"v2_mscoco_{part}_annotations.json",
        folder / part,
    )


def image_name(split: str, image_id: int) -> str:
    """COCO's file name."""
    return f"COCO_{SPLITS[split]}_{image_id:012d}.jpg"


def read_records(data_dir: Path, split: str) -> Iterator[dict[str, Any]]:
    """Questions joined with their annotations, in the order of the questions file.

    Both files are checked as a whole before the first record comes; images as they are read.

    Yields:
      question_id, image_id, question, question_type, answer_type, answers (ten), image (encoded bytes).

    Raises:
      InputError: a file is missing, not JSON, empty, or lacks a key; a question without annotation or the reverse; a
        question number that occurs twice; not ten answers; an image that is missing or damaged.
    """
    questions_path, annotations_path, folder = official_files(data_dir, split)
    questions = field(questions_path, "the file", read_json(questions_path, SOURCE), "questions", list)
    annotations = field(annotations_path, "the file", read_json(annotations_path, SOURCE), "annotations", list)
    for path, rows, what in ((questions_path, questions, "questions"), (annotations_path, annotations, "annotations")):
        if not rows:
            raise InputError(f"{path}: it has no {what}; download it again from {SOURCE}")
    annotated: dict[int, dict[str, Any]] = {}
    for number, annotation in enumerate(annotations):
        where = f"annotation {number}"
        question_id = field(annotations_path, where, annotation, "question_id", int)
        if question_id in annotated:
            raise InputError(f"{annotations_path}: {where}: question {question_id} is annotated twice")
        answers = field(annotations_path, where, annotation, "answers", list)
        if len(answers) != ANNOTATORS:
            raise InputError(f"{annotations_path}: {where}: {len(answers)} answers, the metric needs {ANNOTATORS}")
        annotated[question_id] = {
            "answers": [field(annotations_path, f"{where}, an answer", a, "answer", str) for a in answers],
            "question_type": field(annotations_path, where, annotation, "question_type", str),
            "answer_type": field(annotations_path, where, annotation, "answer_type", str),
        }
    checked: dict[int, dict[str, Any]] = {}
    for number, question in enumerate(questions):
        where = f"question {number}"
        question_id = field(questions_path, where, question, "question_id", int)
        if question_id in checked:
            raise InputError(f"{questions_path}: {where}: question_id {question_id} occurs twice")
        if question_id not in annotated:
            raise InputError(f"{annotations_path}: no annotation of question {question_id}; the two files do not match")
        checked[question_id] = annotated[question_id] | {
            "question_id": question_id,
            "image_id": field(questions_path, where, question, "image_id", int),
            "question": field(questions_path, where, question, "question", str),
        }
    if left := annotated.keys() - checked.keys():
        raise InputError(f"{questions_path}: no question {min(left)}, which is annotated; the two files do not match")
    for record in checked.values():
        path = folder / image_name(split, record["image_id"])
        try:
            data = path.read_bytes()
        except OSError as error:
            raise InputError(f"{path}: {error.strerror}; get the images from {IMAGES}") from error
        yield record | {"image": rgb_bytes(data, str(path))}


def image_paths(data_dir: Path, split: str) -> list[Path]:
    """The images that questions are about, whether or not they are there; none where the questions are malformed."""
    path, _, folder = official_files(data_dir, split)
    questions = read_json(path, SOURCE).get("questions")
    ids = {question.get("image_id") for question in questions or () if isinstance(question, dict)}
    return [folder / image_name(split, number) for number in sorted(i for i in ids if isinstance(i, int))]
