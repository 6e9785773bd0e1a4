"""The simulator beside the clock: by how much it errs in each cell, and whether it ranks the variants alike."""

import dataclasses
import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from scipy.stats import kendalltau

from expertflow_jax.files import make_folder
from expertflow_jax.harness.document import Grid
from expertflow_jax.harness.figures import write_figure
from expertflow_jax.harness.looks import ordered, policy_look
from expertflow_jax.studies.throughput.results import Row, cells

TARGET = 0.1  # most that simulated and measured throughput may differ in the median
ALIKE = 0.05  # variants whose measured speeds differ by less have no order

TEXT = (
    "The same routing, policy objects and slots on the virtual clock; costs of compute are taken in the same run, cell "
    "by cell: rounds of experts and the predictor are timed by themselves, what else a layer-step takes is what the "
    "resident run took. Error: simulated over measured throughput, less one. Tau: Kendall's, of the two orders of a "
    f"cell's variants; pairs: of two variants whose measured speeds differ by {ALIKE:.0%} or more, those that the "
    "simulator orders alike."
)


@dataclasses.dataclass(frozen=True)
class Agreement:
    """Of the rows that were simulated.

    Attributes:
      errors: simulated / measured throughput - 1, of every row.
      taus: Kendall's tau of every cell with two variants at least.
      alike, pairs: ordered pairs of variants of a cell that the simulator orders alike, and all.
    """

    errors: list[float]
    taus: list[float]
    alike: int
    pairs: int

    @property
    def median(self) -> float:
        return float(np.median(np.abs(self.errors)))

    @property
    def worst(self) -> float:
        return float(np.abs(self.errors).max())


def error(row: Row) -> float:
    """Simulated over measured throughput, less one."""
    return row.wall_seconds / _simulated(row) - 1


def _simulated(row: Row) -> float:
    assert row.simulated_seconds is not None, "a row that was simulated"
    return row.simulated_seconds


def simulated_cells(rows: Sequence[Row]) -> list[list[Row]]:
    """The rows that were simulated, by cell."""
    return cells([row for row in rows if row.simulated_seconds is not None])


def agreement(groups: Sequence[Sequence[Row]]) -> Agreement:
    """Of these cells."""
    taus, alike, pairs = [], 0, 0
    for group in groups:
        measured = [row.wall_seconds for row in group]
        simulated = [_simulated(row) for row in group]
        tau = kendalltau(measured, simulated).statistic if len(group) > 1 else np.nan
        if not np.isnan(tau):  # all alike in one of the two: there is no order
            taus.append(float(tau))
        for one, other in itertools.combinations(range(len(group)), 2):
            ratio = measured[one] / measured[other]
            if max(ratio, 1 / ratio) >= 1 + ALIKE:
                pairs += 1
                alike += (simulated[one] < simulated[other]) == (ratio < 1)
    return Agreement([error(row) for group in groups for row in group], taus, alike, pairs)


def summary_grid(rows: Sequence[Row]) -> Grid:
    """A line for each phase and one for all."""
    groups = simulated_cells(rows)
    lines = []
    for title, part in (
        *((phase, [group for group in groups if group[0].phase == phase]) for phase in ("prefill", "decode")),
        ("all", groups),
    ):
        if part:
            whole = agreement(part)
            lines.append(
                (
                    title,
                    str(len(part)),
                    str(len(whole.errors)),
                    f"{100 * whole.median:.1f} %",
                    f"{100 * whole.worst:.1f} %",
                    f"{np.mean(whole.taus):.2f}" if whole.taus else "",
                    f"{whole.alike} of {whole.pairs}",
                )
            )
    titles = ("phase", "cells", "rows", "median error", "worst", "tau, mean", "pairs alike")
    return Grid(titles, lines, (False, *[True] * 6))


def cell_grid(rows: Sequence[Row]) -> Grid:
    """A line for each cell, a column for each variant: measured tokens per second and the error."""
    groups = simulated_cells(rows)
    names = ordered(row.variant for group in groups for row in group)
    lines = []
    for group in groups:
        by_name = {row.variant: row for row in group}
        first, tau = group[0], agreement([group]).taus
        lines.append(
            (
                *(first.model, first.phase, str(first.batch_size), str(first.batches_per_block)),
                f"{first.cache_fraction:g}",
                *(_text(by_name[name]) if name in by_name else "" for name in names),
                f"{tau[0]:.2f}" if tau else "",
            )
        )
    titles = ("model", "phase", "batch", "M", "cache", *names, "tau")
    return Grid(titles, lines, (False, False, *[True] * (len(titles) - 2)))


def _text(row: Row) -> str:
    return f"{row.tokens_per_second:.0f} ({100 * error(row):+.1f} %)"


def draw(rows: Sequence[Row], path: Path) -> list[tuple[Path, str]]:
    """Simulated over measured tokens per second of every row; nothing if none was simulated."""
    simulated = [row for group in simulated_cells(rows) for row in group]
    if not simulated:
        return []
    make_folder(path.parent)
    figure = Figure(figsize=(6.4, 5.2), layout="constrained")
    axes = figure.subplots()
    speeds = [row.tokens_per_second for row in simulated]
    ends = np.array([min(speeds) / 1.3, max(speeds) * 1.3])
    axes.plot(ends, ends, color="black", lw=1)
    axes.fill_between(ends, ends * (1 - TARGET), ends * (1 + TARGET), color="black", alpha=0.12, lw=0)
    for variant in ordered(row.variant for row in simulated):
        colour, marker = policy_look(variant)
        points = [row for row in simulated if row.variant == variant]
        x = [row.tokens_per_second for row in points]
        y = [row.tokens_per_second * (1 + error(row)) for row in points]
        axes.plot(x, y, marker, color=colour, markersize=5, label=variant)
    axes.set(xscale="log", yscale="log", xlabel="measured tokens/s", ylabel="simulated tokens/s")
    axes.legend(frameon=False, fontsize=8)
    write_figure(figure, path)
    return [(path, f"Simulated over measured tokens per second; the band is {TARGET:.0%} to either side.")]
