"""What a task gives a study: examples to answer, and the official score of an answer."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np


@dataclasses.dataclass(frozen=True)
class Example:
    """One question.

    Attributes:
      id: unique in its split.
      messages: in the chat format; content items {"type": "text", "text": ...} and {"type": "image"}.
      image: uint8 [H, W, 3].
      target: what the metric compares with, as JSON has it.
      group: question type or category, for scores by group.
      cluster: what scores of this example may correlate within: the image, of whose questions all have its name.
      max_new_tokens: length limit of the answer; 0 under teacher forcing.
      text: what is encoded as it stands, instead of messages.
      input_ids: tokens given as such, instead of both.
      question: under circular evaluation, the question that this example asks in one rotation; None: the cluster.
    """

    id: str
    messages: list[dict[str, Any]]
    image: np.ndarray | None
    target: Any
    group: str
    cluster: str
    max_new_tokens: int
    text: str | None = None
    input_ids: tuple[int, ...] | None = None
    question: str | None = None


def question_of(example: Example) -> str:
    """What counts together with the example under circular evaluation."""
    return example.cluster if example.question is None else example.question


class Task(Protocol):
    """A benchmark's split.

    Attributes:
      name, split: of the benchmark.
      circular: an answer counts only if all examples of its question are right.
      teacher_forced: nothing is generated; every next token of the example's text is foretold, the true ones given.
    """

    name: str
    split: str
    circular: bool
    teacher_forced: bool

    def examples(self, limit: int | None = None) -> list[Example]:
        """The split's examples in order; with `limit`, at most so many (rotations that count together stay whole)."""

    def score(self, example: Example, prediction: str) -> float:
        """The official score of one answer, in [0, 1]."""

    def aggregate(self, examples: Sequence[Example], predictions: Sequence[str]) -> dict[str, float]:
        """Official scores of a split: "accuracy" in [0, 1] and scores by group."""


def user_turn(text: str, image_first: bool) -> list[dict[str, Any]]:
    """One user message with a text and an image.

    Args:
      image_first: the image before the text, as most chat models are trained; after it, a causal model sees the
        image with the question in mind.
    """
    items: list[dict[str, Any]] = [{"type": "text", "text": text}, {"type": "image"}]
    return [{"role": "user", "content": items[::-1] if image_first else items}]


def mean_by_group(groups: Sequence[str], scores: Sequence[float], prefix: str) -> Mapping[str, float]:
    """Mean score of each group, keys `prefix/group`."""
    by_group: dict[str, list[float]] = {}
    for group, score in zip(groups, scores, strict=True):
        by_group.setdefault(f"{prefix}/{group}", []).append(score)
    return {name: float(np.mean(values)) for name, values in sorted(by_group.items())}
