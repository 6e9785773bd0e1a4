"""What a study's plots share: points, whose cells differ in their seed alone and are averaged, and the legend."""

import dataclasses
from collections.abc import Callable, Iterable, Sequence

import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from expertflow_jax.harness.rows import CellRow

MIB = 1 << 20
_LETTERS_PER_INCH, _LETTERS_OF_A_LINE = 11, 8  # of a legend


@dataclasses.dataclass(frozen=True)
class Point:
    """Means over seeds of the cells at one place of a plot; `accuracy` and `delta` are (estimate, low, high)."""

    rows: Sequence[CellRow]
    mebibytes: float
    tokens_per_second: float
    hit_rate: float
    first_token_seconds: float
    experts_per_batch: float
    accuracy: Float[np.ndarray, "3"]
    delta: Float[np.ndarray, "3"]

    @property
    def row(self) -> CellRow:
        """One of the cells, for the names that they share."""
        return self.rows[0]


def points_of(rows: Iterable[CellRow]) -> list[Point]:
    """One point per combination of names, batches per block and size, ascending in memory."""
    groups: dict[tuple, list[CellRow]] = {}
    for row in rows:
        groups.setdefault((row.policy, row.scheduler, row.losses, row.batches_per_block, row.slots), []).append(row)
    return sorted((_point(group) for group in groups.values()), key=lambda point: point.mebibytes)


def _point(rows: Sequence[CellRow]) -> Point:
    def mean(value: Callable[[CellRow], float | None]) -> float:
        return mean_of(map(value, rows))

    return Point(
        rows,
        mean(lambda r: r.memory_budget_bytes / MIB),
        mean(lambda r: r.tokens_per_second),
        mean(lambda r: r.hit_rate),
        mean(lambda r: r.first_token_seconds),
        mean(lambda r: r.experts_per_batch),
        np.mean([(r.accuracy, r.accuracy_ci_low, r.accuracy_ci_high) for r in rows], axis=0),
        np.mean([(r.accuracy_delta, r.delta_ci_low, r.delta_ci_high) for r in rows], axis=0),
    )


def mean_of(values: Iterable[float | None]) -> float:
    """Of those that are known; NaN, which is not drawn, if none is."""
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else float("nan")


def errors_of(estimates: Float[np.ndarray, "N 3"]) -> Float[np.ndarray, "2 N"]:
    """Lengths below and above the estimates, as matplotlib wants them."""
    return np.maximum(0.0, np.stack([estimates[:, 0] - estimates[:, 1], estimates[:, 2] - estimates[:, 0]]))


def legend_below(figure: Figure, handles: Sequence[Line2D]) -> None:
    """A legend below the axes, in as many columns as the figure is wide enough for."""
    longest = max(len(str(handle.get_label())) for handle in handles)
    columns = int(figure.get_figwidth() * _LETTERS_PER_INCH) // (longest + _LETTERS_OF_A_LINE)
    figure.legend(handles=handles, loc="outside lower center", ncols=max(1, min(len(handles), columns, 8)))
