"""The folder that a command writes: its own while it runs, bound to one config, and whole after a kill at any moment.

A file lock keeps a second process out. config.json says what the folder's results are of; another config is refused.
environment.json says what they ran on; what later runs had otherwise is added, not put in its place. Files are written
whole or not at all (`expertflow_jax.files`), rows line by line (`RowFile`).
"""

import fcntl
import io
import json
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np

from expertflow_jax.errors import InputError, brief
from expertflow_jax.files import PARTIAL, make_folder, read_whole, without_waiting, write_error, write_json
from expertflow_jax.harness.row_file import Parse, RowFile, parse_mapping

CONFIG, ENVIRONMENT, INPUTS = "config.json", "environment.json", "inputs.json"
# Of what computes the results. Autotuning's digest is none of them: the file grows with what is compiled.
_VERSIONS = (
    "commit",
    "packages.expertflow-jax",
    "packages.jax",
    "packages.jaxlib",
    "devices",
    "autotuning",
    "autotuning.file",
)
_RESULTS = ("results.jsonl", "metrics.jsonl", "checkpoints")  # of something, so never without a config
_ROWS = ("results.jsonl", "sections.jsonl", "ablations.jsonl", "metrics.jsonl")
_OTHERS = ("data", "checkpoints")  # folders whose makers clear them themselves
_ABSENT = "absent"
_LATER = "resumed_under"  # key of environment.json: how later openings differed
_MOST_NESTED = 100  # levels of a JSON file


class Workdir:
    """A command's folder, locked and claimed. Use as a context manager, or call `close`.

    Attributes:
      path: the folder.
    """

    def __init__(self, path: str | Path, config: Mapping[str, Any], environment: Mapping[str, Any] | None = None):
        """Opens the folder, makes it if need be, and removes what a kill left half-written.

        Args:
          config: everything that decides the results, as JSON has it.
          environment: of `describe_environment`; kept of the first opening, later differences are added.

        Raises:
          InputError: the folder holds results of another config, another process writes to it, or it cannot be
            written to.
        """
        self.path = make_folder(path)
        self._lock = _locked(self.path)
        try:
            _remove_partial_files(self.path)
            self._claim(to_json(config))
            if environment is not None:
                self._note_environment(to_json(environment))
        except BaseException:
            self.close()
            raise

    def row_file(
        self, name: str, parse: Parse = parse_mapping, plain: Callable[[Any], Mapping[str, Any]] = dict
    ) -> RowFile:
        """The rows of the file of this name; see `RowFile`."""
        return RowFile(self.path / name, parse, plain)

    def claim_inputs(self, digests: Mapping[str, str]) -> None:
        """Binds the folder's rows to files of these contents: name for the user -> digest.

        Raises:
          InputError: what is in the folder was measured with others; names the first that changed.
        """
        path = self.path / INPUTS
        if not path.exists():
            if any((self.path / name).exists() and (self.path / name).stat().st_size for name in _ROWS):
                raise InputError(
                    f"--workdir: {self.path} has rows but no {INPUTS} that would say what they were measured with; "
                    "name another --workdir"
                )
            write_json(path, digests)
            return
        before = read_json(path)
        if changed := sorted(name for name in {*before, *digests} if before.get(name) != digests.get(name)):
            more = f" (and {len(changed) - 1} more)" if len(changed) > 1 else ""
            raise InputError(
                f"--workdir: {self.path} holds results of other inputs: {brief(changed[0], 400)}{more} is not "
                f"what it was; put it back, or name another --workdir ({INPUTS} has its digest)"
            )

    @property
    def begun(self) -> float:
        """When the folder was claimed, in seconds since 1970."""
        return (self.path / CONFIG).stat().st_mtime

    def close(self) -> None:
        """Lets another process write here."""
        self._lock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _claim(self, config: dict[str, Any]) -> None:
        path = self.path / CONFIG
        if path.exists():
            if changed := differences(read_json(path), config):
                more = f" (and {len(changed) - 3} more)" if len(changed) > 3 else ""
                raise InputError(
                    f"--workdir: {self.path} holds results of another config: {'; '.join(changed[:3])}{more}; "
                    f"name another --workdir, or rerun with the config of its {CONFIG}"
                )
            return
        for name in _RESULTS:
            if (self.path / name).exists():
                raise InputError(
                    f"--workdir: {self.path} holds {name} but no {CONFIG} that would say what of; "
                    "name another --workdir"
                )
        write_json(path, config)

    def _note_environment(self, environment: dict[str, Any]) -> None:
        path = self.path / ENVIRONMENT
        if path.exists():
            first = read_json(path)
            resumed = first.pop(_LATER, [])
            if not _are_lists_of_lines(resumed):
                raise InputError(f"{path}: {_LATER} is no list of lists of texts; name another --workdir")
            changed = differences(first, environment)
            if not changed or changed in resumed:
                return
            environment = {**first, _LATER: [*resumed, changed]}
            if versions := version_changes(environment):
                print(
                    f"warning: {self.path} was begun under another version or device: {versions[-1]}", file=sys.stderr
                )
        write_json(path, environment)


def _are_lists_of_lines(values: Any) -> bool:
    return isinstance(values, list) and all(
        isinstance(lines, list) and all(isinstance(line, str) for line in lines) for lines in values
    )


def version_changes(environment: Mapping[str, Any]) -> list[str]:
    """How the versions of what computes differ between the first and later openings: a line for each later one."""
    lines = []
    for changed in environment.get(_LATER, ()):
        if of_version := [line for line in changed if str(line).startswith(tuple(f"{v}:" for v in _VERSIONS))]:
            lines.append("; ".join(brief(line, 400) for line in of_version))
    return lines


def to_json(tree: Any) -> Any:
    """`tree` as it comes back from a JSON file: NumPy values, tuples, configs and paths made plain."""
    return json.loads(json.dumps(tree, default=plain_value))


def plain_value(value: Any) -> Any:
    """What JSON has for NumPy values, ml_collections' configs, and paths."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return value.tolist()
    if hasattr(value, "to_dict"):
        return value.to_dict()
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{type(value).__name__} has no JSON form")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object of a workdir; raises InputError if the file is anything else."""
    content = read_whole(path, "name another --workdir")
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not JSON ({brief(str(error))}); name another --workdir") from error
    if not isinstance(value, dict):
        raise InputError(f"{path}: not a JSON object; name another --workdir")
    if _nested_deeper(value, _MOST_NESTED):
        raise InputError(f"{path}: nested too deeply; name another --workdir")
    return value


def _nested_deeper(tree: Any, most: int) -> bool:
    """Without recursion: what JSON's reader takes may be too deep for its writer."""
    level = [tree]
    for _ in range(most):
        level = [
            entry
            for node in level
            if isinstance(node, dict | list)
            for entry in (node.values() if isinstance(node, dict) else node)
        ]
        if not level:
            return False
    return True


def differences(before: Any, after: Any, path: str = "") -> list[str]:
    """What differs between two JSON trees, as lines of the form "key.key: before, now after"."""
    if isinstance(before, Mapping) and isinstance(after, Mapping):
        lines = []
        for key in sorted({*before, *after}):
            where = f"{path}.{key}" if path else str(key)
            lines += differences(before.get(key, _ABSENT), after.get(key, _ABSENT), where)
        return lines
    return [] if before == after else [f"{brief(path)}: {_value(before)}, now {_value(after)}"]


def _value(value: Any) -> str:
    return brief(repr(value))


def _locked(folder: Path) -> io.BufferedWriter:
    """An exclusive lock that the system drops when this process ends, however it ends."""
    path = folder / ".lock"
    try:
        lock = open(path, "wb", opener=without_waiting)  # noqa: SIM115 (held until `close`)
    except OSError as error:
        raise write_error(path, error) from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        lock.close()
        raise InputError(f"--workdir: another process is writing to {folder}; wait, or name another") from error
    return lock


def _remove_partial_files(folder: Path) -> None:
    """Files alone: a folder of such a name is another writer's, which clears it."""
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if name not in _OTHERS and not name.startswith(".")]
        for name in names:
            if name.endswith(PARTIAL):
                (Path(parent) / name).unlink(missing_ok=True)
