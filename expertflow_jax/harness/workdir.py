"""A study's files: one row per finished cell, per-example predictions, and what is needed to resume after a kill.

Order of writing is what makes a SIGKILL harmless. Config and environment come first; a cell's predictions and arrays
are complete under their final names before its row exists; a row is one write of one line, synced. So a row that can
be read is a finished cell; a line without its end is a cell that did not finish, and is cut off when the folder is
opened again. A file lock keeps a second writer out.
"""

import csv
import fcntl
import io
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np

from expertflow_jax.errors import InputError
from expertflow_jax.harness.files import differences, sync_folder, write_atomically
from expertflow_jax.harness.rows import ROW_KEYS, CellRow

_PREDICTION_KEYS = ("id", "prediction", "target", "score", "reference_prediction")


class ResultWriter:
    """Writes a study's folder; opening it again resumes. Use as a context manager.

    Files: results.jsonl, results.csv (at `finish`), predictions/<cell>.jsonl, arrays/<cell>.npz, config.json,
    environment.json.
    """

    def __init__(self, workdir: str | Path, config: Mapping[str, Any], environment: Mapping[str, Any] | None = None):
        """Opens `workdir`, makes it if need be, and repairs what a kill left.

        Args:
          config: everything that decides the results, as JSON has it.
          environment: of `describe_environment`; kept of the first opening, later differences are added.

        Raises:
          InputError: the folder holds results of another config, another process writes to it, or its rows are
            damaged.
        """
        self.workdir = Path(workdir)
        for folder in (self.workdir, self.workdir / "predictions", self.workdir / "arrays"):
            folder.mkdir(parents=True, exist_ok=True)
        self._lock = _locked(self.workdir)
        try:
            for torn in self.workdir.rglob("*.partial"):
                torn.unlink()
            self._open_config(json.loads(json.dumps(config, default=_plain)))
            self._note_environment(environment)
            _cut_torn_line(self._rows_path)
            self._rows = {row.cell_id: row for row in read_rows(self.workdir)}
        except BaseException:
            self.close()
            raise

    @property
    def _rows_path(self) -> Path:
        return self.workdir / "results.jsonl"

    @property
    def rows(self) -> list[CellRow]:
        """Finished cells' rows, in the order in which they finished."""
        return list(self._rows.values())

    def finished_cells(self) -> set[str]:
        """Ids of the cells whose row is written."""
        return set(self._rows)

    def add(
        self,
        row: CellRow,
        predictions: Iterable[Mapping[str, Any]],
        arrays: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        """Writes a finished cell: predictions and arrays first, then its row.

        Args:
          predictions: one mapping per example with at least id, prediction, target, score and
            reference_prediction.
          arrays: what later cells compare with, for example the first answer token's logits.

        Raises:
          ValueError: the cell is finished already, or a prediction lacks a key.
        """
        if row.cell_id in self._rows:
            raise ValueError(f"cell {row.cell_id} is finished already")
        lines = []
        for prediction in predictions:
            if missing := [key for key in _PREDICTION_KEYS if key not in prediction]:
                raise ValueError(f"a prediction of cell {row.cell_id} has no {missing[0]!r}")
            lines.append(json.dumps(prediction, default=_plain, ensure_ascii=False))
        if len(lines) != row.num_examples:
            raise ValueError(f"cell {row.cell_id}: {len(lines)} predictions of {row.num_examples} examples")
        write_atomically(self.workdir / f"predictions/{row.cell_id}.jsonl", "\n".join([*lines, ""]).encode())
        if arrays:
            packed = io.BytesIO()
            np.savez_compressed(packed, allow_pickle=False, **arrays)
            write_atomically(self.workdir / f"arrays/{row.cell_id}.npz", packed.getvalue())
        _append_line(self._rows_path, json.dumps(row.to_json()))
        self._rows[row.cell_id] = row

    def predictions(self, cell: str) -> list[dict[str, Any]]:
        """A finished cell's predictions, in the order in which they were added."""
        return read_predictions(self.workdir, cell)

    def arrays(self, cell: str) -> dict[str, np.ndarray]:
        """A finished cell's arrays; none if it was added without."""
        path = self.workdir / f"arrays/{cell}.npz"
        if not path.exists():
            return {}
        with np.load(path, allow_pickle=False) as packed:
            return {name: packed[name] for name in packed.files}

    def finish(self) -> None:
        """Writes results.csv anew from the rows."""
        table = io.StringIO()
        writer = csv.DictWriter(table, ROW_KEYS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(row.to_json() for row in self.rows)
        write_atomically(self.workdir / "results.csv", table.getvalue().encode())

    def close(self) -> None:
        """Lets another process write here."""
        self._lock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _open_config(self, config: dict[str, Any]) -> None:
        path = self.workdir / "config.json"
        if path.exists():
            if changed := differences(_read_json(path), config):
                more = f" (and {len(changed) - 3} more)" if len(changed) > 3 else ""
                raise InputError(
                    f"--workdir: {self.workdir} holds results of another config: {'; '.join(changed[:3])}{more}; "
                    "name another --workdir, or rerun with the config of its config.json"
                )
        elif self._rows_path.exists():
            raise InputError(
                f"--workdir: {self.workdir} holds results.jsonl but no config.json that would say what of; "
                "name another --workdir"
            )
        else:
            write_atomically(path, (json.dumps(config, indent=2) + "\n").encode())

    def _note_environment(self, environment: Mapping[str, Any] | None) -> None:
        path = self.workdir / "environment.json"
        if environment is None:
            return
        now = json.loads(json.dumps(environment, default=_plain))
        if path.exists():
            first = _read_json(path)
            resumed = first.pop("resumed_under", [])
            changed = differences(first, now)
            if not changed or changed in resumed:
                return
            now = {**first, "resumed_under": [*resumed, changed]}
        write_atomically(path, (json.dumps(now, indent=2) + "\n").encode())


def read_rows(workdir: str | Path) -> list[CellRow]:
    """The rows of a study's folder; a last line that a kill tore is left out, the file is left as it is.

    Raises:
      InputError: a damaged row, or a cell with two rows.
    """
    path = Path(workdir) / "results.jsonl"
    if not path.exists():
        return []
    rows: dict[str, CellRow] = {}
    *lines, _ = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines, 1):
        try:
            row = CellRow.from_json(json.loads(line))
        except (ValueError, TypeError) as error:
            raise InputError(f"{path}, line {number}: {error}; delete the line to run its cell again") from error
        if row.cell_id in rows:
            raise InputError(f"{path}, line {number}: second row of cell {row.cell_id}; delete one of them")
        rows[row.cell_id] = row
    return list(rows.values())


def read_predictions(workdir: str | Path, cell: str) -> list[dict[str, Any]]:
    """Predictions of a cell; raises InputError if there is no such file."""
    path = Path(workdir) / f"predictions/{cell}.jsonl"
    if not path.exists():
        raise InputError(f"{path}: no such file, though the cell has a row; delete its row to run it again")
    return [json.loads(line) for line in path.read_text().splitlines()]


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise InputError(f"{path}: not JSON ({error}); name another --workdir") from error


def _locked(workdir: Path) -> io.BufferedWriter:
    """An exclusive lock that the system drops when this process ends, however it ends."""
    lock = open(workdir / ".lock", "wb")  # noqa: SIM115 (held until `close`)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        lock.close()
        raise InputError(f"--workdir: another process is writing to {workdir}; wait, or name another") from error
    return lock


def _cut_torn_line(path: Path) -> None:
    """Cuts what follows the last line end: a row that was being written when the process died."""
    if not path.exists():
        return
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        with open(path, "r+b") as file:
            file.truncate(whole)
            os.fsync(file.fileno())


def _append_line(path: Path, line: str) -> None:
    is_new = not path.exists()
    with open(path, "ab", buffering=0) as file:
        data = memoryview((line + "\n").encode())
        while data:
            data = data[file.write(data) :]
        os.fsync(file.fileno())
    if is_new:
        sync_folder(path.parent)


def _plain(value: Any) -> Any:
    """What JSON has for NumPy values, tuples inside ml_collections, and paths."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return value.tolist()
    if hasattr(value, "to_dict"):
        return value.to_dict()
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{type(value).__name__} has no JSON form")
