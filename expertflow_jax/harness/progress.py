"""What a command shows while it runs: how far its cells are and how long the rest will take, and then a table.

On a terminal it is a bar, elsewhere a line a minute.
"""

import datetime
import sys
import time
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

_EVERY = 60.0  # seconds between lines where there is no terminal


def wide_console() -> Console:
    """As wide as the terminal; without one, wide enough for a table of rows."""
    return Console(width=None if sys.stdout.isatty() else 118)


class CellProgress:
    """Use as a context manager. Cells that were finished before count for the bar, and not for the time left."""

    def __init__(self, total: int, finished: int):
        self._terminal = sys.stdout.isatty()
        columns = (BarColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
        self._progress = Progress(*columns, auto_refresh=self._terminal)
        self._bar = self._progress.add_task("", total=total, completed=finished)
        self._finished, self._total = finished, total
        self._parts: dict[str, float] = {}  # of running cells by label, what share is done
        self._begun = self._said = time.monotonic()
        self._new = 0

    def note(self, label: str, parts: int, of: int) -> None:
        """So much of a running cell is done."""
        self._parts[label] = parts / of
        self._show()

    def end(self, label: str) -> None:
        """A cell has ended, well or not."""
        self._parts.pop(label, None)
        self._new += 1
        self._show()

    @property
    def seconds_left(self) -> float | None:
        """For all cells, at the speed so far; None before anything is known of it."""
        done = self._new + sum(self._parts.values())
        if not done:
            return None
        return (time.monotonic() - self._begun) / done * (self._total - self._finished - done)

    def _show(self) -> None:
        left = self.seconds_left
        time_left = "" if left is None else f", {datetime.timedelta(seconds=round(left))} left"
        words = f"{self._finished + self._new}/{self._total} cells{time_left}; {', '.join(self._parts)}"
        completed = self._finished + self._new + sum(self._parts.values())
        self._progress.update(self._bar, completed=completed, description=words)
        now = time.monotonic()
        if not self._terminal and now - self._said >= _EVERY:
            self._said = now
            print(words, flush=True)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._progress.stop()
