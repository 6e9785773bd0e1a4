"""Throughput over cache fractions, one picture per phase: models across, batch sizes down."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from expertflow_jax.files import make_folder
from expertflow_jax.harness.figures import write_figure
from expertflow_jax.harness.looks import ordered, policy_look
from expertflow_jax.offload.variant import RESIDENT
from expertflow_jax.studies.throughput.results import Row, places
from expertflow_jax.workloads.windows import PHASES


def draw_fractions(rows: Sequence[Row], folder: Path) -> list[tuple[Path, str]]:
    """Draws what the rows allow into `folder`: (path, caption) of each, PNG."""
    make_folder(folder)
    pictures = []
    blocks = {row.place for group in places(rows) for row in group}
    for phase in PHASES:
        timed = [row for row in rows if row.phase == phase and row.cache_fraction > 0 and row.place not in blocks]
        pairs = {(row.model, row.batch_size) for row in timed}
        several = {p for p in pairs if len({r.cache_fraction for r in timed if (r.model, r.batch_size) == p}) > 1}
        if not several:
            continue
        models = ordered(row.model for row in timed if (row.model, row.batch_size) in several)
        sizes = sorted({size for _, size in several})
        figure = Figure(figsize=(3.9 * len(models) + 2.2, 2.9 * len(sizes) + 0.5), layout="constrained")
        panels = figure.subplots(len(sizes), len(models), squeeze=False)
        for line, size in zip(panels, sizes, strict=True):
            for axes, model in zip(line, models, strict=True):
                _panel(axes, [row for row in timed if (row.model, row.batch_size) == (model, size)])
                axes.set_title(f"{model}, batch {size}", fontsize=9)
        labelled = max(panels.flat, key=lambda axes: len(axes.get_lines()))
        figure.legend(*labelled.get_legend_handles_labels(), loc="outside right upper", frameon=False, fontsize=9)
        path = folder / f"{phase}.png"
        write_figure(figure, path)
        pictures.append((path, f"{phase.capitalize()}: tokens per second over cache fractions; bars: least to most."))
    return pictures


def _panel(axes: Axes, rows: Sequence[Row]) -> None:
    if not rows:
        axes.set_axis_off()
        return
    for variant in ordered(row.variant for row in rows):
        line = sorted((row for row in rows if row.variant == variant), key=lambda row: row.cache_fraction)
        colour, marker = policy_look(variant)
        middle = [row.tokens_per_second for row in line]
        below = [row.tokens_per_second - row.tokens_per_second_min for row in line]
        above = [row.tokens_per_second_max - row.tokens_per_second for row in line]
        x = [row.cache_fraction for row in line]
        axes.errorbar(x, middle, (below, above), color=colour, marker=marker, markersize=4, lw=1.2, label=variant)
    # the same for all variants with as many slots
    limits = {row.cache_fraction: row.limit_tokens_per_second for row in rows if row.variant != RESIDENT.label}
    axes.plot(sorted(limits), [limits[x] for x in sorted(limits)], "--", color="#D00000", lw=1, label="limit")
    axes.set(yscale="log", xlabel="cache fraction", ylabel="tokens/s")
