"""Runs the cells of a study one after another, in whichever process; writes none of their results itself."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_collections
import numpy as np

from expertflow_jax import gpu_caps
from expertflow_jax.harness.launchers import Note
from expertflow_jax.harness.rows import CellRow
from expertflow_jax.studies.accuracy.comparison import Outcome, make_row, predictions
from expertflow_jax.studies.accuracy.execution import execute
from expertflow_jax.studies.accuracy.exports import cell_files
from expertflow_jax.studies.accuracy.grid import Cell
from expertflow_jax.studies.accuracy.groups import GroupScores
from expertflow_jax.studies.accuracy.preparation import Questions, ask, prepare
from expertflow_jax.studies.accuracy.result_files import read_rows
from expertflow_jax.studies.accuracy.saved_batches import SavedBatches


@dataclasses.dataclass(frozen=True)
class FinishedCell:
    """What `ResultWriter.add` writes of a cell."""

    row: CellRow
    predictions: list[dict[str, Any]]
    arrays: dict[str, np.ndarray] | None
    groups: GroupScores | None
    files: Mapping[str, bytes]


class CellWorker:
    """A worker that is ready; see `launchers.Work`."""

    def __init__(
        self,
        config: ml_collections.ConfigDict,
        workdir: Path,
        todo: Sequence[Cell],
        begun: float,
        asked: Questions | None = None,
    ):
        """
        Args:
          workdir: the study's, which this one reads references from.
          todo: all cells of the study.
          begun: when the study was, in seconds since 1970.
          asked: its questions; read here where they are not given.

        Raises:
          InputError: bad input, or a cell's memory budget is below the least.
        """
        self._config, self._workdir, self._begun = config, workdir, begun
        self._setting = prepare(config, ask(config, workdir, todo) if asked is None else asked, todo)
        for cell in todo:
            memory = self._setting.plan(cell)  # a budget below the minimum is said before any cell runs
            gpu_caps.check(gpu_caps.Needs(device_bytes=memory.total_bytes))
        self._outcome = functools.cache(self._read_outcome)

    def __call__(self, cell: Cell, note: Note) -> FinishedCell:
        """Runs a cell whose references are finished.

        Raises:
          InputError: files of a reference are damaged.
        """
        setting, data = self._setting, self._setting.data[cell.task]
        truth = self._outcome(cell.resident).needed if cell.variant.forecast == "truth" else None
        execution = execute(setting, cell, truth, note, SavedBatches(self._workdir, cell.id))
        outcome = Outcome.of(data, execution)
        is_reference = cell == cell.resident
        reference, baseline = (
            outcome if other == cell else self._outcome(other) for other in (cell.reference, cell.baseline)
        )
        copies = setting.copies_of(cell)
        row = make_row(
            self._config,
            setting.model_of(cell),
            cell,
            data,
            execution,
            outcome,
            reference,
            baseline,
            0 if copies is None else copies.host.host_bytes,
        )
        groups = GroupScores.of(row.cell_id, data, outcome.texts, baseline.texts) if row.scored else None
        return FinishedCell(
            row,
            predictions(data, outcome, baseline),
            outcome.arrays() if is_reference else None,
            groups,
            cell_files(self._config, row, data, outcome, groups, self._begun),
        )

    def _read_outcome(self, cell: Cell) -> Outcome:
        row = next(row for row in read_rows(self._workdir) if row.cell_id == cell.id)
        return Outcome.read(self._workdir, row)
