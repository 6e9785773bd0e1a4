"""What `train.moe` learns from, by the benchmark's name in the config."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import ml_collections

from expertflow_jax import names
from expertflow_jax.models.qwen3_vl_config import Qwen3VLMoeConfig
from expertflow_jax.tasks.answered import Batch
from expertflow_jax.tasks.word_processor import WordProcessor
from expertflow_jax.training.architecture import model_config
from expertflow_jax.training.digit_scenes import DigitScenes
from expertflow_jax.training.easy_vqa import EasyVqa


class Course(Protocol):
    """Batches of a benchmark to learn from, and what is measured on it.

    Made from (training config, model config, a folder for the benchmark's files).

    Attributes:
      processor, patches_per_side: of the benchmark's words and images.
      positions_per_side: places of patches that have an embedding of their own; between them it is interpolated.
      title, about, measured: the model card's heading, what was learnt, and what its accuracies are.
    """

    processor: WordProcessor
    patches_per_side: int
    positions_per_side: int
    title: str
    about: str
    measured: str

    def inputs(self) -> Mapping[str, Path]:
        """Files that decide what is learnt, by how to name them to the user; raises InputError for missing ones."""

    def batch(self, step: int) -> Batch:
        """Of `answered.encode`; a pure function of the config and the step."""

    def held_out(self) -> list[tuple[str, Batch]]:
        """(group, batch) pairs that are never learnt from."""

    def accuracies(self, export: Path) -> dict[str, float]:
        """What an exported checkpoint reaches on the benchmark, by the official scorers, in [0, 1]."""


COURSES: dict[str, Any] = {"digit_scenes": DigitScenes, "easy_vqa": EasyVqa}


def architecture(config: ml_collections.ConfigDict) -> Qwen3VLMoeConfig:
    """The model that is trained.

    Raises:
      InputError: no such benchmark, or an architecture that cannot be.
    """
    course = _course_class(config)
    return model_config(config, course.processor, course.positions_per_side)


def make_course(config: ml_collections.ConfigDict, model: Qwen3VLMoeConfig, data_dir: Path) -> Course:
    """The course of `config.benchmark`; nothing is read or written yet."""
    return _course_class(config)(config, model, data_dir)


def _course_class(config: ml_collections.ConfigDict) -> Any:
    return names.resolve("benchmark", config.benchmark, COURSES, object)
