"""Benchmarks with every image blacked out: what is left of a score without looking (2605.22903).

A loss of accuracy weighs differently where most of the score needs no image, so a study shows this row beside its own.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from expertflow_jax.tasks.base import Example
from expertflow_jax.tasks.multiple_choice import MMBench
from expertflow_jax.tasks.vqa_v2 import VqaV2


def _blacked_out(examples: Sequence[Example]) -> list[Example]:
    return [dataclasses.replace(e, image=None if e.image is None else np.zeros_like(e.image)) for e in examples]


class BlindVqaV2(VqaV2):
    """VQA v2 without seeing."""

    name = "vqa_v2_blind"

    def __init__(self, data_dir: Path, split: str, **options: Any):
        super().__init__(data_dir, split, **options)
        self._seeing = VqaV2(data_dir, split, **options)

    def inputs(self) -> list[Path]:
        return self._seeing.inputs()

    def examples(self, limit: int | None = None) -> list[Example]:
        return _blacked_out(self._seeing.examples(limit))


class BlindMMBench(MMBench):
    """MMBench without seeing."""

    name = "mmbench_blind"

    def __init__(self, data_dir: Path, split: str, **options: Any):
        super().__init__(data_dir, split, **options)
        self._seeing = MMBench(data_dir, split, **options)

    def inputs(self) -> list[Path]:
        return self._seeing.inputs()

    def examples(self, limit: int | None = None) -> list[Example]:
        return _blacked_out(self._seeing.examples(limit))
