"""A study's files: one row per finished cell, per-example predictions, and what later cells compare with.

Order of writing is what makes a SIGKILL harmless: a cell's predictions and arrays are complete under their final names
before its row exists. So a row that can be read is a finished cell with all its files.
"""

import dataclasses
import hashlib
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from expertflow_jax.errors import InputError, brief
from expertflow_jax.files import make_folder, read_whole, write_atomically
from expertflow_jax.harness import row_file
from expertflow_jax.harness.rows import CellRow, to_csv
from expertflow_jax.harness.workdir import Workdir, plain_value
from expertflow_jax.studies.accuracy.groups import GROUPS, GroupScores
from expertflow_jax.studies.accuracy.groups import to_csv as groups_csv

ROWS = "results.jsonl"
_PREDICTION_KEYS = ("id", "prediction", "target", "score", "reference_prediction")


class ResultWriter(Workdir):
    """Writes a study's folder; opening it again resumes. Use as a context manager.

    Files: results.jsonl, groups.jsonl, results.csv and groups.csv (at `finish`), predictions/<cell>.jsonl,
    arrays/<cell>.npz, what `add` is given, and those of `Workdir`.
    """

    def __init__(self, workdir: str | Path, config: Mapping[str, Any], environment: Mapping[str, Any] | None = None):
        """As `Workdir`; raises InputError also if rows or predictions are damaged."""
        super().__init__(workdir, config, environment)
        try:
            for name in ("predictions", "arrays"):
                make_folder(self.path / name)
            self._file = self.row_file(ROWS, CellRow.from_json, CellRow.to_json)
            self._groups = self.row_file(GROUPS, GroupScores.from_json, dataclasses.asdict)
            self._rows = _by_cell(self._file.path, self._file.rows)
            for row in self.rows:
                _predictions_file(self.path, row)
                if row.arrays_sha256 is not None:
                    _arrays_content(self.path, row)
        except BaseException:
            self.close()
            raise

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
        groups: GroupScores | None = None,
        files: Mapping[str, bytes] | None = None,
    ) -> None:
        """Writes a finished cell: predictions and whatever else first, then its row.

        Args:
          predictions: one mapping per example with at least id, prediction, target, score and
            reference_prediction.
          arrays: what later cells compare with, for example the first answer token's logits.
          groups: its scores by group.
          files: contents of more files, by their path in the folder.

        Raises:
          ValueError: the cell is finished already, or a prediction lacks a key.
        """
        if row.cell_id in self._rows:
            raise ValueError(f"cell {row.cell_id} is finished already")
        lines = []
        for prediction in predictions:
            if missing := [key for key in _PREDICTION_KEYS if key not in prediction]:
                raise ValueError(f"a prediction of cell {row.cell_id} has no {missing[0]!r}")
            lines.append(json.dumps(prediction, default=plain_value, ensure_ascii=False))
        if len(lines) != row.num_examples:
            raise ValueError(f"cell {row.cell_id}: {len(lines)} predictions of {row.num_examples} examples")
        content = "\n".join([*lines, ""]).encode()
        row = dataclasses.replace(row, predictions_sha256=hashlib.sha256(content).hexdigest())
        write_atomically(self.path / f"predictions/{row.cell_id}.jsonl", content)
        if arrays:
            packed = io.BytesIO()
            np.savez_compressed(packed, allow_pickle=False, **arrays)
            row = dataclasses.replace(row, arrays_sha256=hashlib.sha256(packed.getvalue()).hexdigest())
            write_atomically(self.path / f"arrays/{row.cell_id}.npz", packed.getvalue())
        for name, more in (files or {}).items():
            make_folder((self.path / name).parent)
            write_atomically(self.path / name, more)
        if groups is not None:
            self._groups.append(groups)
        self._file.append(row)
        self._rows[row.cell_id] = row

    def predictions(self, cell: str) -> list[dict[str, Any]]:
        """A finished cell's predictions, in the order in which they were added."""
        return read_predictions(self.path, self._rows[cell])

    def arrays(self, cell: str) -> dict[str, np.ndarray]:
        """A finished cell's arrays; see `read_arrays`."""
        return read_arrays(self.path, self._rows[cell])

    def put_in_order(self, cells: Sequence[str]) -> None:
        """Rows of these cells first, in this order, whichever finished first; then the others."""
        place = {cell: number for number, cell in enumerate(cells)}
        rows = sorted(self.rows, key=lambda row: place.get(row.cell_id, len(place)))
        if rows != self.rows:
            self._file.replace(rows)
            self._rows = {row.cell_id: row for row in rows}

    def finish(self, rows: Sequence[CellRow] | None = None) -> None:
        """Writes results.csv and groups.csv anew from these rows; None: all."""
        rows = self.rows if rows is None else rows
        write_atomically(self.path / "results.csv", to_csv(rows))
        by_cell = {scores.cell_id: scores for scores in self._groups.rows}
        write_atomically(self.path / "groups.csv", groups_csv(rows, by_cell))


def read_rows(workdir: str | Path) -> list[CellRow]:
    """The rows of a study's folder; a last line that a kill tore is left out, the file is left as it is.

    Raises:
      InputError: a damaged row, or a cell with two rows.
    """
    path = Path(workdir) / ROWS
    return list(_by_cell(path, row_file.read_rows(path, CellRow.from_json)).values())


def _by_cell(path: Path, rows: Iterable[CellRow]) -> dict[str, CellRow]:
    by_cell: dict[str, CellRow] = {}
    for number, row in enumerate(rows, 1):
        if row.cell_id in by_cell:
            raise InputError(f"{path}, line {number}: second row of cell {row.cell_id}; delete one of them")
        by_cell[row.cell_id] = row
    return by_cell


def read_predictions(workdir: str | Path, row: CellRow) -> list[dict[str, Any]]:
    """Predictions of a row's cell.

    Raises:
      InputError: no such file, or not what the cell wrote.
    """
    return row_file.read_rows(_predictions_file(Path(workdir), row))


def read_arrays(workdir: str | Path, row: CellRow) -> dict[str, np.ndarray]:
    """Arrays of a row's cell.

    Raises:
      InputError: it was added without, or the file is damaged.
    """
    with np.load(io.BytesIO(_arrays_content(Path(workdir), row)), allow_pickle=False) as packed:
        return {name: packed[name] for name in packed.files}


def _predictions_file(folder: Path, row: CellRow) -> Path:
    """The row's predictions; raises InputError if they are not those that it was made of."""
    path = folder / f"predictions/{row.cell_id}.jsonl"
    _whole(folder, path, row, row.predictions_sha256)
    return path


def _arrays_content(folder: Path, row: CellRow) -> bytes:
    """The row's arrays as their file has them; raises InputError if they are not those that it was made of."""
    return _whole(folder, folder / f"arrays/{row.cell_id}.npz", row, row.arrays_sha256)


def _whole(folder: Path, path: Path, row: CellRow, sha256: str | None) -> bytes:
    advice = remedy(folder)
    try:
        if not path.exists():
            raise InputError(f"{path}: no such file, though the cell has a row; {advice}")
    except OSError as error:  # a name that no file can have
        raise InputError(f"{folder / ROWS}: cell_id {brief(row.cell_id)} names no file; {advice}") from error
    content = read_whole(path, advice)
    if hashlib.sha256(content).hexdigest() != sha256:
        raise InputError(f"{path}: not the {path.parent.name} that its row was made of; put them back, or {advice}")
    return content


def remedy(folder: Path) -> str:
    """What to do about a damaged file of a finished cell."""
    return f"delete the row of its cell in {folder / ROWS} to run it again"
