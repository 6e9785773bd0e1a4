"""The Pareto plot of a task: accuracy against speed of every way to lose; a panel per cache size and M."""

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from expertflow_jax.harness.looks import ordered, policy_look
from expertflow_jax.harness.rows import CellRow
from expertflow_jax.studies.accuracy.frontier import CONTROLS, Way, dominated, size_of, sizes, ways
from expertflow_jax.studies.accuracy.wording import in_blocks

_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#7F3FBF", "#5E3C1E", "#999999")
_FAINT = 0.25


def draw_frontier(rows: Sequence[CellRow]) -> Figure | None:
    """Of the cells of one task; None where it has no careful way to lose."""
    all_ways = ways(rows)
    families = ordered(way.family for way in all_ways)
    if not any(family not in CONTROLS for family in families):
        return None
    colours = {family: _COLOURS[i % len(_COLOURS)] for i, family in enumerate(families)}
    panels = sizes(all_ways)
    figure = Figure(figsize=(5.2 * len(panels) + 2.5, 4.9), layout="constrained")
    for ax, size in zip(figure.subplots(1, len(panels), sharey=True, squeeze=False)[0], panels, strict=True):
        here = [way for way in all_ways if size_of(way.row) == size]
        for way in here:
            _point(ax, way, colours[way.family], _FAINT if dominated(way, here) else 1.0)
        ax.plot(1, 0, color="black", marker="*", markersize=11, ls="")
        allowed = 100 * max(row.equivalence_margin for row in rows)
        ax.axhspan(-allowed, allowed, color="#000000", alpha=0.07, lw=0)
        ax.axhline(0, color="black", lw=0.7)
        what = "device memory" if "B" in size[0] else "cache fraction"
        ax.set(title=f"{what} {size[0]}{in_blocks(size[1])}", xlabel="speed relative to waiting")
    figure.axes[0].set_ylabel("difference in accuracy, points (95%)")
    figure.legend(handles=_handles(colours, all_ways), loc="outside right upper")
    return figure


def _point(ax: Axes, way: Way, colour: str, alpha: float) -> None:
    marker = policy_look(way.row.policy)[1]
    face = "white" if way.family in CONTROLS else colour
    for cell in way.cells:
        row = cell.row
        below, above = row.accuracy_delta - row.delta_ci_low, row.delta_ci_high - row.accuracy_delta
        errors = ([max(0.0, 100 * below)], [max(0.0, 100 * above)])
        look: dict[str, Any] = {"color": colour, "marker": marker, "mfc": face, "alpha": alpha, "capsize": 2, "ls": ""}
        ax.errorbar([cell.speed_up or 0.0], [100 * row.accuracy_delta], errors, **look)


def _handles(colours: dict[str, str], all_ways: Sequence[Way]) -> list[Line2D]:
    handles = [Line2D([], [], color="black", marker="*", markersize=11, ls="", label="waiting (lossless)")]
    for family, colour in colours.items():
        is_control = family in CONTROLS
        label, face = (f"{family}, control", "white") if is_control else (family, colour)
        handles.append(Line2D([], [], color=colour, marker="o", mfc=face, ls="", label=label))
    for policy in ordered(way.row.policy for way in all_ways):
        handles.append(Line2D([], [], color="#555555", marker=policy_look(policy)[1], ls="", label=policy))
    handles.append(Line2D([], [], color="#555555", marker="o", alpha=_FAINT, ls="", label="dominated"))
    return handles
