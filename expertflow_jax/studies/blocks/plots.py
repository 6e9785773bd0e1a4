"""Plots of a run of blocks: speed over batches per block, and over device memory."""

import itertools
from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator, StrMethodFormatter

from expertflow_jax.files import make_folder
from expertflow_jax.harness.figures import write_figure
from expertflow_jax.harness.looks import policy_look
from expertflow_jax.studies.blocks.comparison import Place

_STYLES = ("-", "--", ":", "-.")
GIB = 1024**3


def draw_plots(everywhere: Sequence[Place], folder: Path) -> list[tuple[Path, str]]:
    """Draws what the places allow into `folder`: (path, caption) of each, PNG."""
    make_folder(folder)
    pictures = []
    for name, group in _groups(everywhere).items():
        caption = (
            "Left: speed over batches per block, each line of one size; crosses are limits of the order that was run. "
            "Right: speed over device memory, batch by batch and in the fastest block; the grey line is the limit of "
            "the best order, the black one resident speed."
        )
        figure = Figure(figsize=(12, 5.4), layout="constrained")
        left, right = figure.subplots(1, 2)
        _over_blocks(left, group)
        _over_memory(right, group)
        figure.suptitle(name)
        path = folder / f"{name.replace(', ', '_').replace(' ', '_')}.png"
        write_figure(figure, path)
        pictures.append((path, f"{name}. {caption}"))
    return pictures


def _groups(everywhere: Sequence[Place]) -> dict[str, list[Place]]:
    """Places that differ in their room alone, where there are several."""
    groups: dict[str, list[Place]] = {}
    for place in everywhere:
        first = place.rows[0]
        groups.setdefault(place.title.replace(f" {first['room']}", ""), []).append(place)
    return {name: group for name, group in groups.items() if len(group) > 1}


def _over_blocks(axes: Axes, group: Sequence[Place]) -> None:
    for place, style in zip(group, itertools.cycle(_STYLES), strict=False):
        for variant in place.variants:
            colour, marker = policy_look(variant)
            rows = [row for size in place.sizes if (row := place.row(variant, size)) is not None]
            x = [row["batches_per_block"] for row in rows]
            label = f"{variant}, {place.rows[0]['room']}"
            speeds = [row["tokens_per_second"] for row in rows]
            axes.plot(x, speeds, style, color=colour, marker=marker, markersize=4, label=label)
            axes.plot(x, [row["limit_tokens_per_second"] for row in rows], "x", color=colour, markersize=5)
    axes.set_xscale("log", base=2)
    _finish(axes, "batches per block, M", sorted({size for place in group for size in place.sizes}))


def _over_memory(axes: Axes, group: Sequence[Place]) -> None:
    for variant in group[0].variants:
        colour, marker = policy_look(variant)
        alone = [row for place in group if (row := place.row(variant, 1)) is not None]
        best = [
            max(rows, key=lambda row: row["tokens_per_second"])
            for place in group
            if (rows := [row for row in place.rows if row["variant"] == variant])
        ]
        for rows, style, what in ((alone, "--", "M = 1"), (best, "-", "best M")):
            rows = sorted(rows, key=lambda row: row["memory_budget_bytes"])
            x = [row["memory_budget_bytes"] / GIB for row in rows]
            speeds = [row["tokens_per_second"] for row in rows]
            axes.plot(x, speeds, style, color=colour, marker=marker, markersize=4, label=f"{variant}, {what}")
    bounds = [max(place.rows, key=lambda row: row["best_order_tokens_per_second"]) for place in group]
    bounds.sort(key=lambda row: row["memory_budget_bytes"])
    x = [row["memory_budget_bytes"] / GIB for row in bounds]
    axes.plot(x, [row["best_order_tokens_per_second"] for row in bounds], color="#999999", label="limit, best order")
    first = bounds[0]
    axes.axhline(
        first["tokens_per_second"] / first["fraction_of_resident"], color="black", linewidth=0.8, label="resident"
    )
    _finish(axes, "device memory, GiB", x)


def _finish(axes: Axes, label: str, x: Sequence[float]) -> None:
    axes.xaxis.set_major_locator(FixedLocator(list(x)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:.3g}"))
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.yaxis.set_minor_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.set_xlabel(label)
    axes.set_ylabel("tokens/s")
    axes.grid(alpha=0.3, which="both")
    axes.legend(frameon=False, fontsize=8, ncols=3, handlelength=3.5, loc="upper center", bbox_to_anchor=(0.5, -0.14))
