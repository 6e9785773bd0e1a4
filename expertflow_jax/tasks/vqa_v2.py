"""VQA v2 (1612.00837): short answers to questions about COCO images, scored against ten people's (see `vqa_files`)."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from expertflow_jax.tasks.base import Example, mean_by_group, user_turn
from expertflow_jax.tasks.vqa_files import official_files
from expertflow_jax.tasks.vqa_metric import vqa_accuracy

MAX_NEW_TOKENS = 10


def prompt_text(question: str) -> str:
    """The prompt that short-answer evaluations of VQA share (LLaVA-1.5, lmms-eval)."""
    return f"{question}\nAnswer the question using a single word or phrase."


class VqaV2:
    """The task; reads what the TFDS builder prepared from the official files."""

    name = "vqa_v2"
    circular = False
    teacher_forced = False

    @staticmethod
    def inputs(data_dir: Path, split: str) -> list[Path]:
        """Files and folders that the examples are read from."""
        return list(official_files(data_dir, split))

    def __init__(self, data_dir: Path, split: str, *, image_first: bool = False, prepared_dir: Path | None = None):
        from expertflow_jax.tasks.builders.prepare import prepared
        from expertflow_jax.tasks.builders.vqa_v2 import VqaV2Builder

        official_files(data_dir, split)
        self.split = split
        self._image_first = image_first
        self._source = prepared(VqaV2Builder, data_dir, split, prepared_dir)

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
