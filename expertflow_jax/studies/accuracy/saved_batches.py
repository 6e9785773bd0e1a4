"""running/<cell>.jsonl and .state: finished batches of a cell that is not finished, so that it goes on after a kill.

A line of .jsonl is what came of a batch. .state is what the session was at behind a number of batches: a line of JSON
that names them, then bytes (`inference.saved_session`). Lines are on disk before the state that speaks of them; lines
beyond it are cut. What does not fit together, or was written by other code, is thrown away, and the cell begins anew.
Saving takes at most a twentieth of the time: a cell of seconds writes nothing.
"""

import contextlib
import dataclasses
import hashlib
import json
import time
from collections.abc import Callable
from pathlib import Path

from expertflow_jax.errors import InputError
from expertflow_jax.files import make_folder, write_atomically
from expertflow_jax.harness.environment import code_digest
from expertflow_jax.harness.row_file import RowFile
from expertflow_jax.offload.saved_state import CannotBeSaved
from expertflow_jax.studies.accuracy.batch_results import BatchResult

FOLDER = "running"
_SHARE = 0.05  # of the time that saving may take
_FIRST_COST = 0.05  # seconds that saving is thought to take before it is known


@dataclasses.dataclass(frozen=True)
class Saved:
    """Batches that need not be run again, and the state behind them."""

    batches: list[BatchResult]
    state: bytes


class SavedBatches:
    """Those of one cell, in a workdir that is this run's."""

    def __init__(self, workdir: Path, cell_id: str, share: float = _SHARE):
        """
        Args:
          share: of the time that saving may take; infinite: save behind every batch.
        """
        self._lines = workdir / FOLDER / f"{cell_id}.jsonl"
        self._state = workdir / FOLDER / f"{cell_id}.state"
        self._share = share
        self._unsaved: list[BatchResult] = []
        self._file: RowFile | None = None
        self._next = time.monotonic() + _FIRST_COST / share

    def load(self) -> Saved | None:
        """What may be built on; None: nothing."""
        try:
            header, _, state = self._state.read_bytes().partition(b"\n")
            about = json.loads(header)
            if about != {"batches": about["batches"], **_about(state)}:
                raise ValueError("of another state, or of other code")
            file = RowFile(self._lines, BatchResult.from_json, BatchResult.to_json)
            if len(file.rows) < about["batches"]:
                raise ValueError("batches are missing")
            if len(file.rows) > about["batches"]:
                file.replace(file.rows[: about["batches"]])
            self._file = file
            return Saved(list(file.rows), state)
        except (OSError, ValueError, TypeError, KeyError, InputError):
            self.remove()
            return None

    def add(self, batch: BatchResult, state: Callable[[], bytes] | None) -> None:
        """A batch has ended.

        Args:
          state: what the session is at; None while other batches run.
        """
        self._unsaved.append(batch)
        if state is None or time.monotonic() < self._next:
            return
        began = time.monotonic()
        try:
            content = state()
        except CannotBeSaved:
            self._next = float("inf")
            return
        if self._file is None:
            make_folder(self._lines.parent)
            self._file = RowFile(self._lines, BatchResult.from_json, BatchResult.to_json)
        for each in self._unsaved:
            self._file.append(each)
        self._unsaved.clear()
        header = json.dumps({"batches": len(self._file.rows), **_about(content)})
        write_atomically(self._state, header.encode() + b"\n" + content)
        ended = time.monotonic()
        self._next = ended + (ended - began) / self._share

    def remove(self) -> None:
        """Nothing of the cell is kept any more."""
        for path in (self._state, self._lines):  # lines without a state are nothing
            path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # other cells are in it, or it is not there
            self._lines.parent.rmdir()


def _about(state: bytes) -> dict[str, str]:
    return {"sha256": hashlib.sha256(state).hexdigest(), "code": code_digest()}
