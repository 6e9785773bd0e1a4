"""Runs a study: all cells of a config's grid, resumable, then the report.

References come first; a finished reference is read back from its files, so a killed study goes on where it was.
"""

import contextlib
import functools
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ml_collections

from expertflow_jax.errors import InputError
from expertflow_jax.harness import launchers
from expertflow_jax.harness.environment import describe_environment
from expertflow_jax.harness.failures import Failures
from expertflow_jax.harness.inputs import claim_inputs, model_files, task_files
from expertflow_jax.harness.launchers import Job
from expertflow_jax.harness.progress import CellProgress, wide_console
from expertflow_jax.harness.rows import CellRow
from expertflow_jax.studies.accuracy.cell_worker import CellWorker
from expertflow_jax.studies.accuracy.grid import Cell
from expertflow_jax.studies.accuracy.opening_lines import opening_lines
from expertflow_jax.studies.accuracy.preparation import Questions, ask, check, launcher_of
from expertflow_jax.studies.accuracy.report import render_table, write_report
from expertflow_jax.studies.accuracy.result_files import ResultWriter
from expertflow_jax.studies.accuracy.saved_batches import SavedBatches
from expertflow_jax.tasks.base import optional

_HOW = ("launcher", "workers")  # config keys that decide no result


def run(config: ml_collections.ConfigDict, workdir: Path, command: str) -> list[CellRow]:
    """Runs what is not finished yet, writes the report, returns all rows.

    Raises:
      InputError: bad config or input, or a workdir of another study.
      Unfinished: cells failed; the others have been run.
    """
    todo = check(config)
    launchers.leave_devices_to_workers(launcher_of(config)[0])
    plain: dict[str, Any] = json.loads(config.to_json_best_effort())
    claimed = {key: value for key, value in plain.items() if key not in _HOW}
    named = {cell.id for cell in todo}
    with ResultWriter(workdir, claimed, describe_environment(config.seeds[0])) as writer:
        asked = ask(config, workdir, todo)
        claim_inputs(writer, _inputs(config, asked))
        for line in opening_lines(asked, todo, config.num_examples):
            print(line)
        failures = Failures(writer)
        _run_cells(config, asked, todo, writer, failures)
        writer.put_in_order([cell.id for cell in todo])
        rows = _of_the_grid(writer, todo)
        writer.finish(rows)
    if rows:
        console = wide_console()
        report, html = write_report(workdir, command=command, cells={row.cell_id for row in rows})
        console.print(render_table(rows))
        console.print(f"{len(rows)} cells; {report}, {html}", soft_wrap=True)
    failures.check(named)
    return rows


def _of_the_grid(writer: ResultWriter, todo: Sequence[Cell]) -> list[CellRow]:
    """Rows of the config's cells; says on standard error if there are others."""
    named = {cell.id for cell in todo}
    if others := [row.cell_id for row in writer.rows if row.cell_id not in named]:
        print(
            f"warning: {writer.path} has a row of {others[0]}, which the config does not name; left out",
            file=sys.stderr,
        )
    return [row for row in writer.rows if row.cell_id in named]


def _inputs(config: ml_collections.ConfigDict, asked: Questions) -> dict[str, Path]:
    """The files that decide the rows, by how to name them."""
    read = [path for task, _ in asked.values() for path in optional(task, "inputs")()]
    paths = model_files(config.model) | task_files(config, read)
    if config.predictor:
        paths |= model_files(config.predictor, "predictor")
    if config.clock == "virtual":
        paths["costs"] = Path(config.costs)
    return paths


def _run_cells(
    config: ml_collections.ConfigDict, asked: Questions, todo: list[Cell], writer: ResultWriter, failures: Failures
) -> None:
    finished = writer.finished_cells()
    jobs = [Job(cell.id, cell, _needs(cell)) for cell in todo if cell.id not in finished]
    if not jobs:
        return
    launcher, workers = launcher_of(config)
    labels = {cell.id: cell.label() for cell in todo}
    shared = ml_collections.ConfigDict(config.to_dict())  # of a class that every process knows
    start = functools.partial(CellWorker, shared, writer.path, todo, writer.begun, None if launcher else asked)
    with CellProgress(len(todo), len(todo) - len(jobs)) as progress:
        pool = launchers.make_pool(launcher, workers, start, lambda name, *parts: progress.note(labels[name], *parts))
        with contextlib.closing(launchers.run(pool, jobs)) as ends:
            for ended in ends:
                cell = ended.job.work
                if ended.failure is None:
                    result = ended.result
                    writer.add(result.row, result.predictions, result.arrays, result.groups, result.files)
                    failures.forget(cell.id)
                elif ended.failure.error == "NumericError" and cell == cell.baseline:
                    raise InputError(ended.failure.message)  # without it no cell of its task has a row
                else:
                    failures.add(cell.id, labels[cell.id], ended.failure)
                SavedBatches(writer.path, cell.id).remove()  # a failed cell begins anew
                progress.end(labels[cell.id])


def _needs(cell: Cell) -> frozenset[str]:
    """Cells that it is compared with, and whose routing it knows."""
    others = [cell.reference, cell.baseline]
    if cell.variant.forecast == "truth":
        others.append(cell.resident)
    return frozenset(other.id for other in others if other != cell)
