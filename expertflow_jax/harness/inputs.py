"""The files that decide a command's rows: weights, predictor, costs, questions and images.

config.json holds their paths; what was in them stands in inputs.json (`Workdir.claim_inputs`), by digests of their
whole content. They are remembered in the workdir, so that a folder of 40,000 images is read through for the first run
and looked through for the next (`Digests`).
"""

import contextlib
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import ml_collections

from expertflow_jax.errors import InputError
from expertflow_jax.harness.environment import describe_environment
from expertflow_jax.harness.workdir import Workdir
from expertflow_jax.locate import locate
from expertflow_jax.tasks import provided
from expertflow_jax.tasks.base import optional
from expertflow_jax.tasks.builders.digests import Digests
from expertflow_jax.tasks.registry import make_task

MEMORY = "digests.json"
_SERVED = (".safetensors", ".json", ".jinja", ".txt")  # what a checkpoint or predictor folder is read for


def model_files(name: str, key: str = "model") -> dict[str, Path]:
    """What is read of a model or predictor, by how to name it to the user."""
    folder = locate(name, key)
    return {f"{key} file {path.name}": path for path in sorted(folder.iterdir()) if path.suffix in _SERVED}


def task_files(config: ml_collections.ConfigDict, paths: Iterable[Path]) -> dict[str, Path]:
    """Files and folders of `config.data_dir` by how to name them to the user; without one, what the config's
    benchmark is written from."""
    if config.data_dir:
        return {f"data_dir file {path}": path for path in paths}
    return provided.sources(config.benchmark)


def split_files(config: ml_collections.ConfigDict, splits: Iterable[tuple[str, str]]) -> dict[str, Path]:
    """`task_files` of whole splits, (task, split) each: their official files and the folder of their images."""
    paths: list[Path] = []
    for name, split in splits if config.data_dir else ():
        task = make_task(name, config.data_dir, split)
        folder = optional(task, "image_folder")()
        paths += [*optional(task, "inputs")(), *([folder] if folder else [])]
    return task_files(config, paths)


@contextlib.contextmanager
def claimed_workdir(path: Path, config: ml_collections.ConfigDict, files: Mapping[str, Path]) -> Iterator[Workdir]:
    """A command's folder, bound to its config, to this machine and to the contents of `files`; see `claim_inputs`.

    Raises:
      InputError: the folder is of another config or of other contents, or cannot be had (see `Workdir`).
    """
    plain = json.loads(config.to_json_best_effort())
    with Workdir(path, plain, describe_environment(config.seed)) as workdir:
        claim_inputs(workdir, files)
        yield workdir


def claim_inputs(workdir: Workdir, paths: Mapping[str, Path]) -> None:
    """Binds the workdir's rows to the contents of these files and folders.

    Args:
      paths: by how to name each to the user. What is missing is left to whoever reads it.

    Raises:
      InputError: the rows that are there are of other contents; it names what changed.
    """
    memory = Digests(workdir.path / MEMORY)
    named = _named(paths, memory)
    memory.remember()
    try:
        workdir.claim_inputs(named)
    except InputError:  # what is remembered may be damaged, so files are read before they are called changed
        workdir.claim_inputs(_named(paths, Digests(None)))


def _named(paths: Mapping[str, Path], digests: Digests) -> dict[str, str]:
    named = {}
    for name, path in paths.items():
        if path.is_dir():
            named[name] = digests.together(sorted(file for file in path.rglob("*") if file.is_file()))
        else:
            named[name] = digests.of(path)
    return named
