"""TFDS builder of VQA v2's official files."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from expertflow_jax.errors import InputError
from expertflow_jax.tasks import vqa_files


class VqaV2Builder(tfds.core.GeneratorBasedBuilder):
    """One record per question, in the order of the questions file."""

    name = "vqa_v2"
    VERSION = tfds.core.Version("1.0.0")

    def __init__(self, *, official_dir: Path, official_split: str, **arguments: Any):
        self._official = (official_dir, official_split)
        super().__init__(**arguments)

    @staticmethod
    def inputs(data_dir: Path, split: str) -> list[Path]:
        """Files that decide what the data is."""
        return [*vqa_files.official_files(data_dir, split)[:2], *vqa_files.image_paths(data_dir, split)]

    @staticmethod
    def check(data_dir: Path, split: str) -> None:
        """Raises InputError if an official file is missing."""
        for path in vqa_files.official_files(data_dir, split):
            if not path.exists():
                raise InputError(f"{path}: no such file or folder; get it from {vqa_files.SOURCE}")

    def _info(self) -> tfds.core.DatasetInfo:
        text = tfds.features.Text()
        return tfds.core.DatasetInfo(
            builder=self,
            disable_shuffling=True,
            features=tfds.features.FeaturesDict(
                {
                    "question_id": np.int64,
                    "image_id": np.int64,
                    "question": text,
                    "question_type": text,
                    "answer_type": text,
                    "answers": tfds.features.Sequence(text),
                    "image": tfds.features.Image(shape=(None, None, 3)),
                }
            ),
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        return {self._official[1]: self._generate_examples()}

    def _generate_examples(self) -> Any:
        for number, record in enumerate(vqa_files.read_records(*self._official)):
            yield number, record | {"image": io.BytesIO(record["image"])}
