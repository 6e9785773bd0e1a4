"""failures.jsonl: cells that have failed, apart from the results. A rerun tries them again; what ends well leaves it.

A line has cell_id, label (as people read it), error (the exception's class), message, time (seconds since 1970) and
traceback.
"""

import time
from typing import Any

from expertflow_jax.errors import Unfinished, brief
from expertflow_jax.harness.launchers import Failure
from expertflow_jax.harness.row_file import with_keys
from expertflow_jax.harness.workdir import Workdir

FAILURES = "failures.jsonl"
_KEYS = ("cell_id", "label", "error", "message", "time", "traceback")
_MOST_NAMED = 5


class Failures:
    """The failures of a workdir's cells, the latest of each."""

    def __init__(self, workdir: Workdir):
        self._file = workdir.row_file(FAILURES, with_keys(*_KEYS))

    def add(self, cell_id: str, label: str, failure: Failure) -> None:
        """A cell has failed, perhaps once more."""
        values = (cell_id, label, failure.error, failure.message, round(time.time(), 3), failure.traceback)
        self._file.keep(lambda row: row["cell_id"] != cell_id)
        self._file.append(dict(zip(_KEYS, values, strict=True)))

    def forget(self, cell_id: str) -> None:
        """The cell has ended well."""
        self._file.keep(lambda row: row["cell_id"] != cell_id)

    def of(self, cell_ids: set[str]) -> list[dict[str, Any]]:
        """Of these cells."""
        return [row for row in self._file.rows if row["cell_id"] in cell_ids]

    def check(self, cell_ids: set[str]) -> None:
        """Raises Unfinished, a line that names them, if any of these cells has failed."""
        rows = self.of(cell_ids)
        if not rows:
            return
        named = "; ".join(
            f"{row['label']} ({row['error']}: {brief(' '.join(str(row['message']).split()), 160)})"
            for row in rows[:_MOST_NAMED]
        )
        more = f"; and {len(rows) - _MOST_NAMED} more" if len(rows) > _MOST_NAMED else ""
        raise Unfinished(
            f"{len(rows)} of {len(cell_ids)} cells failed: {named}{more}; {self._file.path} has their tracebacks; "
            "rerun the same command to try them again"
        )
