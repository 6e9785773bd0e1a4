"""Questions of official files before their images are read, and which of them a study asks."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from expertflow_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class Question:
    """A question as its file has it, in values that JSON knows.

    Attributes:
      id: unique in its split.
      text: as it is asked, without options and instructions.
      image: names the image; questions about the same image have the same name.
      target: what the metric compares with; None where answers are not public.
      groups: what scores are reported by, name of the grouping -> group.
      cluster: see `Example`.
      rotates: under circular evaluation, the question that this row asks with its options rotated.
      columns: what else the prompt or a submission needs, by the official names.
    """

    id: str
    text: str
    image: str
    target: Any
    groups: Mapping[str, str]
    cluster: str
    rotates: str | None = None
    columns: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def select(questions: Sequence[Question], limit: int | None, seed: int | None) -> list[Question]:
    """At most `limit` questions in the order of the file; rotations of a question stay together.

    Args:
      limit: None for all.
      seed: of a random sample of whole clusters (images with all their questions); None: the first of the file.

    Returns:
      At least one cluster or circular question, be it larger than the limit.

    Raises:
      InputError: the limit is below one.
    """
    if limit is None:
        return list(questions)
    if limit < 1:
        raise InputError(f"config key num_examples: {limit} is below 1; 0 is all")
    members: dict[str, list[int]] = {}
    for place, question in enumerate(questions):
        key = question.rotates or question.id if seed is None else question.cluster
        members.setdefault(key, []).append(place)
    groups = list(members.values())
    order = range(len(groups)) if seed is None else np.random.default_rng(seed).permutation(len(groups))
    chosen: list[int] = []
    for number in order:
        if chosen and len(chosen) + len(groups[number]) > limit:
            break
        chosen += groups[number]
    return [questions[place] for place in sorted(chosen)]
