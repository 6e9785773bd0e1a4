"""TFDS builder of MMBench's official TSV."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from expertflow_jax.errors import InputError
from expertflow_jax.tasks import mmbench_files


class MMBenchBuilder(tfds.core.GeneratorBasedBuilder):
    """One record per row, the rotations of a question together."""

    name = "mmbench"
    VERSION = tfds.core.Version("1.0.0")

    def __init__(self, *, official_dir: Path, official_split: str, **arguments: Any):
        self._official = (official_dir, official_split)
        super().__init__(**arguments)

    @staticmethod
    def inputs(data_dir: Path, split: str) -> list[Path]:
        """Files that decide what the data is."""
        return [mmbench_files.official_file(data_dir, split)]

    @staticmethod
    def check(data_dir: Path, split: str) -> None:
        """Raises InputError if the official file is missing."""
        path = mmbench_files.official_file(data_dir, split)
        if not path.exists():
            raise InputError(f"{path}: no such file; get it from {mmbench_files.SOURCE}")

    def _info(self) -> tfds.core.DatasetInfo:
        text = tfds.features.Text()
        return tfds.core.DatasetInfo(
            builder=self,
            disable_shuffling=True,
            features=tfds.features.FeaturesDict(
                {
                    "index": np.int64,
                    "question": text,
                    "hint": text,
                    "letters": tfds.features.Sequence(text),
                    "options": tfds.features.Sequence(text),
                    "answer": text,
                    "category": text,
                    "l2_category": text,
                    "image": tfds.features.Image(shape=(None, None, 3)),
                }
            ),
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        return {self._official[1]: self._generate_examples()}

    def _generate_examples(self) -> Any:
        for number, record in enumerate(mmbench_files.read_records(*self._official)):
            yield number, record | {"image": io.BytesIO(record["image"])}
