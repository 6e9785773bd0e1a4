"""Benchmarks that need no files of the user's: they are written as official files, by the name in the config."""

from pathlib import Path

import ml_collections

from expertflow_jax import names
from expertflow_jax.tasks import easy_vqa
from expertflow_jax.tasks.digit_scenes.files import write_benchmark

BENCHMARKS = ("digit_scenes", "easy_vqa")


def data_folder(config: ml_collections.ConfigDict, workdir: Path) -> Path:
    """Where the official files lie: `config.data_dir`, or WORKDIR/data with `config.benchmark` written there.

    Raises:
      InputError: no such benchmark, its package is not installed, or the files cannot be written.
    """
    if config.data_dir:
        return Path(config.data_dir)
    data_dir = workdir / "data"
    if names.find("benchmark", config.benchmark, BENCHMARKS) == "easy_vqa":
        easy_vqa.write_benchmark(data_dir, config.easy_vqa.images or None)
    else:
        sizes = config.digit_scenes
        write_benchmark(data_dir, train=sizes.train, val=sizes.val, seed=sizes.seed)
    return data_dir


def sources(benchmark: str) -> dict[str, Path]:
    """What a benchmark is written from, by how to name it to the user; nothing where it is made up."""
    return {"easy-VQA's package data": easy_vqa.package_data()} if benchmark == "easy_vqa" else {}
