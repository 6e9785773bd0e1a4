"""Plots of a scale run, on logarithmic axes: host cost, simulated throughput, token scheduling."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from expertflow_jax.files import make_folder
from expertflow_jax.harness.figures import write_figure
from expertflow_jax.harness.looks import ordered, policy_look, scheduler_look
from expertflow_jax.studies.growth.growth import growth

Row = dict[str, Any]
SWEEPS = (("layers", "num_layers", "MoE layers"), ("experts", "num_experts", "experts per layer"))
TARGET_US = 50.0
_STYLES = ("-", "--", ":", "-.")


def draw_plots(rows: Sequence[Row], folder: Path) -> list[tuple[Path, str]]:
    """Draws what the rows allow into `folder`: (path, caption) of each, PNG."""
    make_folder(folder)
    host = [row for row in rows if row["kind"] == "host" and row["sweep"] != "target"]
    schedulers = [row for row in rows if row["kind"] == "scheduler"]
    pictures = []
    if host:
        figure = _over_sizes(host, "host_us", "host µs per layer-step", TARGET_US)
        caption = "CPU time of the engine per layer-step, exponent of growth in brackets; the line is the target."
        pictures.append(_save(figure, folder / "host.png", caption))
        figure = _over_sizes(host, "tokens_per_second", "tokens/s", None)
        caption = "Simulated tokens per second at constant active work."
        pictures.append(_save(figure, folder / "throughput.png", caption))
    if schedulers:
        caption = "CPU time of planning a window, and its share of the simulated time of running it; the line is 1 %."
        pictures.append(_save(_schedulers(schedulers), folder / "schedulers.png", caption))
    return pictures


def _save(figure: Figure, path: Path, caption: str) -> tuple[Path, str]:
    write_figure(figure, path)
    return path, caption


def _over_sizes(rows: Sequence[Row], key: str, title: str, target: float | None) -> Figure:
    figure = Figure(figsize=(12, 4.6), layout="constrained")
    panels = figure.subplots(1, 2)
    batches = sorted({row["batch_size"] for row in rows})
    for axes, (sweep, size, label) in zip(panels, SWEEPS, strict=True):
        for policy in ordered(row["policy"] for row in rows):
            colour, marker = policy_look(policy)
            for batch, style in zip(batches, _STYLES, strict=False):
                line = [r for r in rows if (r["sweep"], r["policy"], r["batch_size"]) == (sweep, policy, batch)]
                line.sort(key=lambda row: row[size])
                x, y = [row[size] for row in line], [row[key] for row in line]
                if not x:
                    continue
                slope = growth(x, y)
                name = f"{policy}, {batch} sequence{'s' * (batch > 1)}" + (f" [{slope.exponent:+.2f}]" if slope else "")
                axes.plot(x, y, style, color=colour, marker=marker, markersize=4, label=name)
        if target is not None:
            axes.axhline(target, color="black", linewidth=0.8)
        _logarithmic(axes, label, title)
    return figure


def _schedulers(rows: Sequence[Row]) -> Figure:
    figure = Figure(figsize=(12, 4.6), layout="constrained")
    panels = figure.subplots(1, 2)
    names, workloads = ordered(row["scheduler"] for row in rows), ordered(row["workload"] for row in rows)
    for axes, key, title in zip(panels, ("seconds", "share"), ("planning, s", "share of time scheduled"), strict=True):
        for name in names:
            colour, marker = scheduler_look(name)
            for workload, style in zip(workloads, _STYLES, strict=False):
                line = [row for row in rows if (row["scheduler"], row["workload"]) == (name, workload)]
                line.sort(key=lambda row: row["window"])
                x, y = [row["window"] for row in line], [row[key] for row in line]
                axes.plot(x, y, style, color=colour, marker=marker, markersize=4, label=f"{name}, {workload}")
        _logarithmic(axes, "sequences in the window", title)
    panels[1].axhline(0.01, color="black", linewidth=0.8)
    return figure


def _logarithmic(axes: Axes, label: str, title: str) -> None:
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xlabel(label)
    axes.set_ylabel(title)
    axes.grid(alpha=0.3, which="both")
    axes.legend(frameon=False, fontsize=7)
