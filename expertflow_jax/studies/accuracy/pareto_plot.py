"""The plot of accuracy against throughput: the cells of one task, a panel per size."""

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from expertflow_jax.harness.looks import ordered, policy_look
from expertflow_jax.harness.rows import CellRow
from expertflow_jax.studies.accuracy.pareto import Place, is_control, places
from expertflow_jax.studies.accuracy.points import Point, errors_of, legend_below

_FAINT = 0.22
_MOST_PANELS = 4


def draw_pareto(rows: Sequence[CellRow]) -> Figure | None:
    """Of the cells of one task; None where `places` has none. Of many sizes, those with most cells are drawn."""
    largest = sorted(places(rows), key=lambda place: -len(place.points))[:_MOST_PANELS]
    panels = [place for place in places(rows) if place.size in {other.size for other in largest}]
    if not panels:
        return None
    figure = Figure(figsize=(4.2 * len(panels) + 1.4, 5.2), layout="constrained")
    for ax, place in zip(figure.subplots(1, len(panels), sharey=True, squeeze=False)[0], panels, strict=True):
        _draw(ax, place)
        what = "device memory" if "B" in place.size else "cache fraction"
        ax.set(title=f"{what} {place.size}", xlabel="tokens per second", xlim=(0, None))
    figure.axes[0].set_ylabel("accuracy, % (95%)")
    handles = _handles([point.row for place in panels for point in place.points])
    legend_below(figure, handles)
    return figure


def _draw(ax: Axes, place: Place) -> None:
    for point in place.points:
        _draw_point(ax, point, any(point is other for other in place.front))
    x = [point.tokens_per_second for point in place.front]
    ax.step(x, [100 * point.accuracy[0] for point in place.front], where="pre", color="black", lw=0.8, zorder=1)


def _draw_point(ax: Axes, point: Point, in_front: bool) -> None:
    row, accuracy = point.row, 100 * point.accuracy[None]
    alpha = 1.0 if in_front else _FAINT
    colour, marker = policy_look(row.policy)
    look: dict[str, Any] = {"color": colour, "marker": marker, "alpha": alpha, "ls": "", "elinewidth": 0.8}
    ax.errorbar(
        [point.tokens_per_second],
        accuracy[:, 0],
        errors_of(accuracy),
        **look,
        mfc="white" if is_control(row) else colour,
        mec="black" if row.lossless else colour,
        markersize=8 if row.lossless else 6,
    )
    if in_front and row.batches_per_block > 1:
        place: dict[str, Any] = {"xytext": (5, -11), "textcoords": "offset points", "fontsize": 8}
        ax.annotate(f"M={row.batches_per_block}", (point.tokens_per_second, accuracy[0, 0]), **place)


def _handles(rows: Sequence[CellRow]) -> list[Line2D]:
    handles = [
        Line2D([], [], color=policy_look(policy)[0], marker=policy_look(policy)[1], ls="", label=policy)
        for policy in ordered(row.policy for row in rows)
    ]
    grey: dict[str, Any] = {"color": "#777777", "marker": "o", "ls": ""}
    handles.append(Line2D([], [], **grey, mec="black", markersize=8, label="lossless"))
    if any(not row.lossless and not is_control(row) for row in rows):
        handles.append(Line2D([], [], **grey, label="loses"))
    if any(is_control(row) for row in rows):
        handles.append(Line2D([], [], **grey, mfc="white", label="loses, control"))
    handles.append(Line2D([], [], **grey, alpha=_FAINT, label="beaten in both"))
    handles.append(Line2D([], [], color="black", lw=0.8, label="front"))
    return handles
