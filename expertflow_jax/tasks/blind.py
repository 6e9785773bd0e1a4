"""Benchmarks with every image blacked out: what is left of a score without looking (2605.22903).

A loss of accuracy weighs differently where most of the score needs no image, so a study shows this row beside its own.
"""

import numpy as np

from expertflow_jax.tasks.base import Example
from expertflow_jax.tasks.multiple_choice import MMBench
from expertflow_jax.tasks.questions import Question
from expertflow_jax.tasks.vqa_v2 import VqaV2


class BlindVqaV2(VqaV2):
    """VQA v2 without seeing."""

    name = "vqa_v2_blind"

    def _example(self, question: Question, image: np.ndarray) -> Example:
        return super()._example(question, np.zeros_like(image))


class BlindMMBench(MMBench):
    """MMBench without seeing."""

    name = "mmbench_blind"

    def _example(self, question: Question, image: np.ndarray) -> Example:
        return super()._example(question, np.zeros_like(image))
