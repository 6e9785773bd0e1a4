"""VQA v2 (1612.00837) from its official files: questions and annotations JSON, COCO images.

DATA/vqa_v2/v2_OpenEnded_mscoco_val2014_questions.json, v2_mscoco_val2014_annotations.json, val2014/COCO_val2014_*.jpg
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from expertflow_jax.errors import InputError
from expertflow_jax.tasks.base import Example, mean_by_group, user_turn
from expertflow_jax.tasks.files import field, read_json, rgb_bytes
from expertflow_jax.tasks.vqa_metric import vqa_accuracy

SOURCE = "https://visualqa.org/download.html"
IMAGES = "https://cocodataset.org/#download"
ANNOTATORS = 10
MAX_NEW_TOKENS = 10
SPLITS = {"train": "train2014", "val": "val2014"}


def prompt_text(question: str) -> str:
    """The prompt that short-answer evaluations of VQA share (LLaVA-1.5, lmms-eval)."""
    return f"{question}\nAnswer the question using a single word or phrase."


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
      InputError: a file is missing, not JSON, or lacks a key; a question without annotation or the reverse; a
        question number that occurs twice; not ten answers; an image that is missing or damaged.
    """
    questions_path, annotations_path, folder = official_files(data_dir, split)
    questions = field(questions_path, "the file", read_json(questions_path, SOURCE), "questions", list)
    annotations = field(annotations_path, "the file", read_json(annotations_path, SOURCE), "annotations", list)
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


class VqaV2:
    """The task; reads what the TFDS builder prepared from the official files."""

    name = "vqa_v2"
    circular = False
    teacher_forced = False

    def __init__(self, data_dir: Path, split: str, *, image_first: bool = False):
        from expertflow_jax.tasks.builders.prepare import prepared
        from expertflow_jax.tasks.builders.vqa_v2 import VqaV2Builder

        official_files(data_dir, split)
        self.split = split
        self._image_first = image_first
        self._source = prepared(VqaV2Builder, data_dir, split)

    def examples(self, limit: int | None = None) -> list[Example]:
        count = len(self._source) if limit is None else min(limit, len(self._source))
        return [self._example(self._source[i]) for i in range(count)]

    def _example(self, record: dict[str, Any]) -> Example:
        return Example(
            id=str(record["question_id"]),
            messages=user_turn(prompt_text(record["question"].decode()), self._image_first),
            image=np.asarray(record["image"]),
            target={
                "answers": [answer.decode() for answer in record["answers"]],
                "answer_type": record["answer_type"].decode(),
            },
            group=record["question_type"].decode(),
            cluster=str(record["image_id"]),
            max_new_tokens=MAX_NEW_TOKENS,
        )

    def score(self, example: Example, prediction: str) -> float:
        return vqa_accuracy(prediction, example.target["answers"])

    def aggregate(self, examples: Sequence[Example], predictions: Sequence[str]) -> dict[str, float]:
        scores = [self.score(e, p) for e, p in zip(examples, predictions, strict=True)]
        return {
            "accuracy": float(np.mean(scores)),
            **mean_by_group([e.target["answer_type"] for e in examples], scores, "answer_type"),
            **mean_by_group([e.group for e in examples], scores, "question_type"),
        }
