"""The scale run's report: report.md, report.html and plots/*.png, from its rows and files alone."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ml_collections
from rich.console import Console

from expertflow_jax.harness import report
from expertflow_jax.harness.document import Block, Code, Grid, Heading, Paragraph, Picture
from expertflow_jax.harness.looks import ordered
from expertflow_jax.studies.growth.growth import Growth, growth
from expertflow_jax.studies.growth.plots import draw_plots

Row = dict[str, Any]
SETTLED = 16  # windows below this are left out of the exponents: planning them takes fixed costs alone
LIMIT = 0.01  # of the time scheduled


def write_report(
    workdir: Path, rows: Sequence[Row], config: ml_collections.ConfigDict, command: str, console: Console
) -> None:
    """Writes the report and prints its tables."""
    host = [row for row in rows if row["kind"] == "host"]
    schedulers = [row for row in rows if row["kind"] == "scheduler"]
    grids = [
        ("Host bookkeeping at the target's size", _TARGET, target_grid(host)),
        ("Growth over layers and experts per layer", _GROWTH, growth_grid(host)),
        ("Token schedulers over the window", _SCHEDULERS, scheduler_grid(schedulers)),
    ]
    blocks: list[Block] = [
        Heading(1, "Host cost, throughput and scheduling over sizes"),
        Code(command),
        Paragraph(
            f"The real engine and schedulers, without weights. Simulated: {config.gpu} at its published peaks with a "
            f"full-size layer of {config.shape} ({config.top_k} experts per token everywhere: active work is constant) "
            f"and its link; slots for {config.cache_fraction:g} of the experts. Measured: CPU time, least of "
            f"{config.repeats} repeats of {config.steps} decode steps after one that warms up."
        ),
    ]
    pictures = draw_plots(rows, workdir / "plots")
    blocks += report.sections(grids, console)
    blocks += [Heading(2, "Plots"), *(Picture(path, text) for path, text in pictures)]
    blocks += report.attached(workdir, ("config.json", "environment.json"))
    report.write(workdir, blocks)
    console.print(f"wrote {workdir / 'report.md'}, report.html and plots/", highlight=False)


_TARGET = (
    "Microseconds per layer-step (one MoE layer in one decode step) in all calls of the engine: CPU time of the one "
    "thread under the virtual clock, the virtual link's own simulation included; under the real clock wall time of the "
    "computing thread inside the engine, stalls left out, waiting until the link's thread lets go included (nothing is "
    "computed then, so fewer experts travel per layer-step). What is asked for, sent for, and the rounds of compute "
    "are per layer-step too. Per transfer: what a row costs more than the one whose experts all have slots, by its "
    "transfers; bookkeeping of a transfer falls into the time in which experts travel."
)
_GROWTH = (
    "Exponent b of cost = a * size ** b, least squares on logarithms with 95 % confidence; 0 is flat, 1 is linear. "
    "Simulated tokens per second at the smallest and largest size, and if the host's time came on top in full."
)
_SCHEDULERS = (
    "CPU time of planning one window beside the simulated time of running it: batches of the window times the mean "
    "time of a batch (a prefill and its decode steps, replayed losslessly through the engine, policy expertflow). "
    f"Exponent of planning time over the window, from {SETTLED} sequences on."
)


def target_grid(rows: Sequence[Row]) -> Grid:
    """Host cost at the target's size."""
    cells = [row for row in rows if row["sweep"] == "target"]
    titles = (
        "policy",
        "clock",
        "sequences",
        "slots",
        "asked",
        "hits",
        "sent",
        "rounds",
        "µs",
        "median",
        "per transfer",
    )
    all_here = {(r["policy"], r["batch_size"]): r["host_us"] for r in cells if r["cache_fraction"] == 1}

    def per_transfer(row: Row) -> str:
        more = row["host_us"] - all_here.get((row["policy"], row["batch_size"]), float("nan"))
        known = row["clock"] == "virtual" and row["transfers"] > 0.05 and more == more
        return f"{more / row['transfers']:.1f}" if known else ""

    texts = [
        (
            f"`{row['policy']}`",
            row["clock"],
            str(row["batch_size"]),
            f"{row['cache_fraction']:g}",
            f"{row['asked']:.1f}",
            f"{row['hit_rate']:.2f}",
            f"{row['transfers']:.2f}",
            f"{row['rounds']:.2f}",
            f"{row['host_us']:.1f}",
            f"{row['host_us_median']:.1f}",
            per_transfer(row),
        )
        for row in cells
    ]
    return Grid(titles, texts, (False, False, *[True] * 9))


def growth_grid(rows: Sequence[Row]) -> Grid:
    """Exponents of host cost and simulated throughput over each sweep."""
    texts = []
    for sweep, size in (("layers", "num_layers"), ("experts", "num_experts")):
        cells = [row for row in rows if row["sweep"] == sweep]
        for policy in ordered(row["policy"] for row in cells):
            for batch in sorted({row["batch_size"] for row in cells}):
                line = [row for row in cells if row["policy"] == policy and row["batch_size"] == batch]
                line.sort(key=lambda row: row[size])
                sizes = [row[size] for row in line]
                first, last = line[0], line[-1]
                texts.append(
                    (
                        f"{'layers' if sweep == 'layers' else 'experts per layer'} {sizes[0]} to {sizes[-1]}",
                        f"`{policy}`",
                        str(batch),
                        f"{first['host_us']:.1f} to {last['host_us']:.1f}",
                        _text(growth(sizes, [row["host_us"] for row in line])),
                        f"{first['tokens_per_second']:.0f} to {last['tokens_per_second']:.0f}",
                        f"{first['tokens_per_second_with_host']:.0f} to {last['tokens_per_second_with_host']:.0f}",
                        _text(growth(sizes, [row["tokens_per_second"] for row in line])),
                    )
                )
    titles = (
        "sweep",
        "policy",
        "sequences",
        "host µs per layer-step",
        "exponent of host cost",
        "tokens/s",
        "tokens/s, host on top",
        "exponent of tokens/s",
    )
    return Grid(titles, texts, (False, False, *[True] * 6))


def scheduler_grid(rows: Sequence[Row]) -> Grid:
    """Planning time and its share of the time scheduled."""
    texts = []
    for workload in ordered(row["workload"] for row in rows):
        for name in ordered(row["scheduler"] for row in rows):
            line = [row for row in rows if row["workload"] == workload and row["scheduler"] == name]
            line.sort(key=lambda row: row["window"])
            settled = [row for row in line if row["window"] >= SETTLED]
            worst, last = max(line, key=lambda row: row["share"]), line[-1]
            texts.append(
                (
                    workload,
                    f"`{name}`",
                    f"{last['window']}",
                    f"{last['seconds'] * 1e3:.1f}",
                    f"{last['seconds_per_sequence'] * 1e6:.0f}",
                    f"{last['scheduled_seconds']:.2f}",
                    f"{100 * last['share']:.3f} %",
                    f"{100 * worst['share']:.3f} % at {worst['window']}",
                    "yes" if worst["share"] < LIMIT else "no",
                    _text(growth([r["window"] for r in settled], [r["seconds"] for r in settled])),
                )
            )
    titles = (
        *("workload", "scheduler", "window", "planning, ms", "per sequence, µs", "scheduled, s", "share"),
        *("largest share", "always below 1 %", "exponent"),
    )
    return Grid(titles, texts, (False, False, *[True] * 6, False, True))


def _text(exponent: Growth | None) -> str:
    return "" if exponent is None else str(exponent)
