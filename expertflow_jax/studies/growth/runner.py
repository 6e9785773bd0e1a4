"""Runs a scale config: cell by cell, resumable at cells; then the report."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_collections
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from expertflow_jax.harness.inputs import claimed_workdir
from expertflow_jax.harness.row_file import with_keys
from expertflow_jax.offload.budget import format_bytes
from expertflow_jax.simulation.host_cost import measure_host
from expertflow_jax.studies.growth.grid import host_cells, host_row, machine_of, scheduler_cells, scheduler_row
from expertflow_jax.studies.growth.schedulers import batch_seconds, made_up_signatures, planning_seconds

Measure = Callable[[], dict[str, Any]]


def cells_of(config: ml_collections.ConfigDict) -> list[tuple[str, Measure]]:
    """Label and measurement of every cell; signatures and the time of a batch are made once per workload and window.

    Raises:
      InputError: values that cannot be.
    """
    machine, cells = machine_of(config), []

    def measures_host(cell: Any) -> Measure:
        return lambda: host_row(cell, measure_host(cell, machine, config.steps, config.repeats, config.seed))

    latest: dict[str, Any] = {}

    def measures_scheduler(cell: Any) -> Measure:
        def measure() -> dict[str, Any]:
            work = cell.workload
            if latest.get("work") != work:
                latest.update(work=work, seconds=batch_seconds(work, config.seed), window=None)
            if latest["window"] != cell.window:
                latest.update(window=cell.window, signatures=made_up_signatures(work, cell.window, config.seed))
            spent = planning_seconds(cell.scheduler, work, latest["signatures"], config.repeats)
            return scheduler_row(cell, spent, latest["seconds"])

        return measure

    for host in host_cells(config):
        cells.append((host.label(), measures_host(host)))
    schedules = scheduler_cells(config)
    names = list(dict.fromkeys(cell.workload.name for cell in schedules))
    for cell in sorted(schedules, key=lambda c: (names.index(c.workload.name), c.window)):
        cells.append((cell.label(), measures_scheduler(cell)))
    return cells


def plan(config: ml_collections.ConfigDict) -> None:
    """Prints the cells and what they need; measures nothing."""
    console = Console(width=118)
    for label, _ in cells_of(config):
        console.print(label, highlight=False)
    windows = [(cell.window, cell.workload) for cell in scheduler_cells(config)]
    largest = max((window * work.num_layers * work.num_experts * 4 for window, work in windows), default=0)
    machine = machine_of(config)
    console.print(
        f"{len(cells_of(config))} cells; no weights; signatures of the largest window {format_bytes(largest)}, "
        f"planning needs about three times that; simulated link {machine.link}, "
        f"experts of {format_bytes(machine.expert_bytes)}"
    )


def run(config: ml_collections.ConfigDict, workdir: Path, command: str) -> list[dict[str, Any]]:
    """Measures what is not finished yet, writes all files, returns all rows.

    Raises:
      InputError: bad config, or a workdir of another one.
    """
    from expertflow_jax.studies.growth.report import write_report

    cells = cells_of(config)
    console = Console(width=None if sys.stdout.isatty() else 118)
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    costs = {f"config key workloads.{name}.recorded_costs": w.recorded_costs for name, w in config.workloads.items()}
    with claimed_workdir(workdir, config, {name: Path(file) for name, file in costs.items() if file}) as place:
        results = place.row_file("results.jsonl", with_keys("cell", "kind"))
        finished = {row["cell"] for row in results.rows}
        with Progress(*columns, TextColumn("{task.description}"), auto_refresh=sys.stdout.isatty()) as progress:
            bar = progress.add_task("", total=len(cells))
            for number, (label, measure) in enumerate(cells):
                progress.update(bar, description=label)
                if number not in finished:
                    results.append({"cell": number, **measure()})
                progress.advance(bar)
        write_report(workdir, results.rows, config, command, console)
    return results.rows
