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
      groups: what scores are reported by, name of the grouping -> group: {"answer_type": "number"}.
      columns: what else the official row holds, for submissions and logs.
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
    groups: Mapping[str, str] = dataclasses.field(default_factory=dict)
    columns: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def question_of(example: Example) -> str:
    """What counts together with the example under circular evaluation."""
    return example.cluster if example.question is None else example.question


class Task(Protocol):
    """A benchmark's split.

    Attributes:
      name, split: of the benchmark.
      circular: an answer counts only if all examples of its question are right.
      teacher_forced: nothing is generated; every next token of the example's text is foretold, the true ones given.

    A task may have more, as `official.OfficialTask` has: `evaluator`, `second_evaluator` with `second_score`, `scored`,
    `inputs`, `image_folder`, `submission`, `unwritten` (why it gives no `submission`). `OPTIONAL` says what counts
    where it has not.
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


OPTIONAL: Mapping[str, Any] = {
    "evaluator": "the task's own",
    "second_evaluator": None,
    "scored": True,
    "inputs": list,
    "image_folder": lambda: None,
    "submission": lambda examples, predictions: None,
    "unwritten": None,
}


def optional(task: Any, name: str) -> Any:
    """An attribute that a task may have, or what counts instead."""
    return getattr(task, name, OPTIONAL[name])


def scores_by_group(examples: Sequence[Example], scores: Sequence[float]) -> dict[str, float]:
    """Mean score of each group of each grouping, keys "grouping/group"."""
    return {name: float(np.mean(values)) for name, values in _by_group(examples, scores).items()}


def group_sizes(examples: Sequence[Example]) -> dict[str, int]:
    """How many questions each group has, rotations counted once; keys "grouping/group"."""
    once = {question_of(example): example for example in examples}
    return {name: len(values) for name, values in _by_group(list(once.values()), [0.0] * len(once)).items()}


def group_flips(examples: Sequence[Example], answers: Sequence[str], reference: Sequence[str]) -> dict[str, int]:
    """How many questions of each group have another answer than the reference, in one rotation at least."""
    once = {question_of(example): example for example in examples}
    changed = dict.fromkeys(once, 0.0)
    for example, answer, other in zip(examples, answers, reference, strict=True):
        if answer != other:
            changed[question_of(example)] = 1.0
    return {name: int(sum(flags)) for name, flags in _by_group(list(once.values()), list(changed.values())).items()}


def _by_group(examples: Sequence[Example], scores: Sequence[float]) -> dict[str, list[float]]:
    by_group: dict[str, list[float]] = {}
    for example, score in zip(examples, scores, strict=True):
        for grouping, group in example.groups.items():
            by_group.setdefault(f"{grouping}/{group}", []).append(score)
    return dict(sorted(by_group.items()))
