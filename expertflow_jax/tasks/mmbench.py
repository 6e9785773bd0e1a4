"""MMBench (2307.06281): multiple choice with circular evaluation (files: `mmbench_files`).

In a circular set the rows index, index + 1e6, index + 2e6, ... are one question with its options rotated, and it
counts only if every row is answered right. Questions that show the same image are one cluster, whether rows refer to
the image's row or repeat it. Choices are read from answers as VLMEvalKit reads them without a judge.
"""

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from expertflow_jax.tasks.base import Example, mean_by_group, question_of, user_turn
from expertflow_jax.tasks.mmbench_files import ROTATION, official_file

MAX_NEW_TOKENS = 8
_REFUSALS = (
    "Sorry, I can't help with images of people yet.",
    "I can't process this file.",
    "I'm sorry, but without the image provided",
    "Cannot determine the answer",
)
_LAST_WORDS = 4  # a letter counts among these; earlier, "A" is likely to be the article


def prompt_text(question: str, options: Mapping[str, str], hint: str | None = None) -> str:
    """VLMEvalKit's prompt for multiple choice."""
    lines = [f"Hint: {hint}\n"] if hint else []
    lines += [f"Question: {question}\n", "Options:\n", *(f"{letter}. {text}\n" for letter, text in options.items())]
    return "".join([*lines, "Please select the correct answer from the options above. \n"])


def extract_choice(prediction: str, options: Mapping[str, str]) -> str | None:
    """The option that an answer names, read as VLMEvalKit's `can_infer` reads it before it would ask a judge.

    Exactly one option letter among the words, and near the end; else exactly one option's text somewhere in an answer
    that is not much longer than all options; else None.
    """
    if any(refusal in prediction for refusal in _REFUSALS):
        return None
    spaced = prediction
    for mark in ".()[],:;!*#{}":
        spaced = spaced.replace(mark, " ")
    words = spaced.split()
    named = [letter for letter in options if letter in words]
    if len(named) == 1 and words.index(named[0]) >= len(words) - _LAST_WORDS:
        return named[0]
    if not named and "Z" in words:  # "none of them", in VLMEvalKit's prompt for its judge
        return None
    if len(prediction) > 2 * sum(len(text) for text in options.values()):
        return None
    mentioned = [letter for letter, text in options.items() if text.lower() in prediction.lower()]
    return mentioned[0] if len(mentioned) == 1 else None


def _image_digest(pixels: np.ndarray) -> bytes:
    return hashlib.blake2b(repr(pixels.shape).encode() + pixels.tobytes(), digest_size=16).digest()


class MMBench:
    """The task; reads what the TFDS builder prepared from the official file."""

    name = "mmbench"
    circular = True
    teacher_forced = False

    @staticmethod
    def inputs(data_dir: Path, split: str) -> list[Path]:
        """Files that the examples are read from."""
        return [official_file(data_dir, split)]

    def __init__(self, data_dir: Path, split: str, *, image_first: bool = False, prepared_dir: Path | None = None):
        from expertflow_jax.tasks.builders.mmbench import MMBenchBuilder
        from expertflow_jax.tasks.builders.prepare import prepared

        official_file(data_dir, split)
        self.split = split
        self._image_first = image_first
        self._source = prepared(MMBenchBuilder, data_dir, split, prepared_dir)

    def examples(self, limit: int | None = None) -> list[Example]:
        examples: list[Example] = []
        rotations: list[Example] = []
        question_of_image: dict[bytes, str] = {}  # the first question that shows it, whose name its cluster takes
        for i in range(len(self._source)):
            record = self._source[i]
            example = self._example(record)
            if rotations and example.question != rotations[0].question:
                examples += rotations
                rotations = []
            if rotations:
                cluster = rotations[0].cluster
            else:
                cluster = question_of_image.setdefault(_image_digest(np.asarray(record["image"])), example.cluster)
            rotations.append(dataclasses.replace(example, cluster=cluster))
            if limit is not None and examples and len(examples) + len(rotations) > limit:
                return examples
        return examples + rotations

    def _example(self, record: dict[str, Any]) -> Example:
        letters = [letter.decode() for letter in record["letters"]]
        options = dict(zip(letters, (option.decode() for option in record["options"]), strict=True))
        text = prompt_text(record["question"].decode(), options, record["hint"].decode() or None)
        index = int(record["index"])
        question = str(index % ROTATION)
        return Example(
            id=str(index),
            messages=user_turn(text, self._image_first),
            image=np.asarray(record["image"]),
            target={"answer": record["answer"].decode(), "options": options},
            group=record["category"].decode(),
            cluster=question,
            question=question,
            max_new_tokens=MAX_NEW_TOKENS,
        )

    def score(self, example: Example, prediction: str) -> float:
        return float(extract_choice(prediction, example.target["options"]) == example.target["answer"])

    def aggregate(self, examples: Sequence[Example], predictions: Sequence[str]) -> dict[str, float]:
        """`accuracy` is circular: of questions right in every rotation; `vanilla_accuracy` is that of first rows."""
        rotations: dict[str, dict[int, float]] = {}
        group_of = {}
        for example, prediction in zip(examples, predictions, strict=True):
            question = question_of(example)
            rotations.setdefault(question, {})[int(example.id)] = self.score(example, prediction)
            group_of[question] = example.group
        circular = [min(scores.values()) for scores in rotations.values()]
        return {
            "accuracy": float(np.mean(circular)),
            "vanilla_accuracy": float(np.mean([scores[min(scores)] for scores in rotations.values()])),
            **mean_by_group([group_of[question] for question in rotations], circular, "category"),
        }
