"""Runs a study: all cells of a config's grid, resumable at cell granularity, then the report.

References come first; a finished reference is read back from its files, so a killed study goes on where it was.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ml_collections
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from expertflow_jax import gpu_caps
from expertflow_jax.errors import InputError
from expertflow_jax.harness import data as study_data
from expertflow_jax.harness.environment import describe_environment
from expertflow_jax.harness.inputs import claim_inputs, model_files, task_files
from expertflow_jax.harness.rows import CellRow
from expertflow_jax.inference.loading import load_model, pin_experts, with_expert_dtype
from expertflow_jax.locate import locate
from expertflow_jax.offload.budget import format_bytes
from expertflow_jax.predictor import load_predictor
from expertflow_jax.simulation.costs import ComputeCosts
from expertflow_jax.studies.accuracy.comparison import Outcome, make_row, predictions
from expertflow_jax.studies.accuracy.execution import Setting, execute
from expertflow_jax.studies.accuracy.exports import cell_files
from expertflow_jax.studies.accuracy.grid import Cell, cells
from expertflow_jax.studies.accuracy.groups import GroupScores
from expertflow_jax.studies.accuracy.report import render_table, write_report
from expertflow_jax.studies.accuracy.result_files import ResultWriter
from expertflow_jax.tasks.base import Example, Task, optional

CLOCKS = ("virtual", "real")


def _console() -> Console:
    """As wide as the terminal; without one, wide enough for the table."""
    return Console(width=None if sys.stdout.isatty() else 118)


def check(config: ml_collections.ConfigDict) -> list[Cell]:
    """The study's cells; raises InputError for a bad config before any work."""
    if config.clock not in CLOCKS:
        raise InputError(f"config key clock: {config.clock!r} is neither virtual nor real")
    for key in ("batch_size", "window", "bootstrap_samples", "text_tokens"):
        if config[key] < 1:
            raise InputError(f"config key {key}: {config[key]} is below 1")
    if not 0 < config.equivalence_margin < 1:
        raise InputError(
            f"config key equivalence_margin: {config.equivalence_margin} is not in (0, 1); 0.01 is one point"
        )
    if config.window < config.batch_size:
        raise InputError(f"config key window: {config.window} is smaller than batch_size {config.batch_size}")
    todo = cells(config)
    if not todo:
        raise InputError("config key grids: they hold no cell; see configs/quickstart.py")
    forecasting = [cell for cell in todo if cell.forecasts]
    if forecasting and not config.predictor:
        raise InputError(
            f"config key predictor: {forecasting[0].label()} forecasts; train one with train.predictor and name it"
        )
    return todo


Questions = dict[str, tuple[Task, list[Example]]]
"""By the task's name in the config."""


def ask(config: ml_collections.ConfigDict, workdir: Path, todo: Sequence[Cell]) -> Questions:
    """Writes or reads the benchmarks' questions."""
    asked = {}
    for name in dict.fromkeys((*config.tasks, *(cell.task for cell in todo))):
        task = study_data.open_task(config, name, workdir)
        asked[name] = task, study_data.read(task, config.num_examples)
    return asked


def prepare(config: ml_collections.ConfigDict, asked: Questions, todo: Sequence[Cell]) -> Setting:
    """Loads model and predictor, encodes prompts and forecasts their routes."""
    costs = ComputeCosts.load(config.costs) if config.clock == "virtual" else None
    host_memory_budget = config.host_memory_budget or None
    model = load_model(config.model, config.dtype, host_memory_budget=host_memory_budget)
    predictor = None
    if config.predictor:
        predictor = load_predictor(locate(config.predictor, "predictor"), expect_fingerprint=model.fingerprint)
    wanted = sorted({dtype for cell in todo for dtype in (cell.expert_dtype, cell.copies) if dtype})
    quantized = {name: with_expert_dtype(model, name, host_memory_budget) for name in wanted}
    for served in (model, *quantized.values()):
        pin_experts(served.store, None if predictor is None else predictor.popularity)
    data, signatures = {}, {}
    for name, (task, questions) in asked.items():
        data[name] = study_data.prepare(model, task, questions, config.num_examples, config.text_tokens)
        signatures[name] = study_data.signatures(model, predictor, data[name], config.batch_size)
    return Setting(
        model,
        predictor,
        data,
        signatures,
        costs,
        config.link,
        config.batch_size,
        config.window,
        config.max_wait,
        config.disk,
        quantized,
    )


def plan(config: ml_collections.ConfigDict, workdir: Path) -> None:
    """Prints what the study would run and the memory that each size needs; writes no results."""
    todo = check(config)
    setting = prepare(config, ask(config, workdir, todo), todo)
    console = _console()
    console.print(
        f"model {setting.model.name}: {setting.model.store.num_layers} MoE layers of "
        f"{setting.model.store.num_experts} experts, {format_bytes(setting.model.store.expert_bytes)} each; "
        f"host tier {format_bytes(setting.model.host.host_bytes)}, on disk alone "
        f"{format_bytes(setting.model.host.disk_bytes)}"
    )
    for name, served in setting.quantized.items():
        console.print(
            f"{name} experts: {format_bytes(served.store.expert_bytes)} each; host tier "
            f"{format_bytes(served.host.host_bytes)}"
        )
    for name, task_data in setting.data.items():
        console.print(f"task {name}: {len(task_data.examples)} examples, {task_data.prompt_tokens} prompt tokens")
    printed: set[tuple] = set()
    for cell in todo:
        memory = setting.plan(cell)
        key = (cell.task, memory, cell.expert_dtype)
        if key not in printed:
            printed.add(key)
            parts = ", ".join(f"{part} {format_bytes(size)}" for part, size in memory.describe())
            dtype = f" {cell.expert_dtype}" if cell.expert_dtype else ""
            console.print(f"{cell.task}{dtype} @{cell.memory_budget or f'{cell.cache_fraction:g}'}: {parts}")
    console.print(f"{len(todo)} cells")
    for cell in todo:
        console.print(f"  {cell.label()}", highlight=False)


def run(config: ml_collections.ConfigDict, workdir: Path, command: str) -> list[CellRow]:
    """Runs what is not finished yet, writes the report, returns all rows.

    Raises:
      InputError: bad config or input, or a workdir of another study.
    """
    todo = check(config)
    plain: dict[str, Any] = json.loads(config.to_json_best_effort())
    console = _console()
    with ResultWriter(workdir, plain, describe_environment(config.seeds[0])) as writer:
        asked = ask(config, workdir, todo)
        claim_inputs(writer, _inputs(config, asked))
        setting = prepare(config, asked, todo)
        for cell in todo:
            memory = setting.plan(cell)  # a budget below the minimum is said before any cell runs
            gpu_caps.check(gpu_caps.Needs(device_bytes=memory.total_bytes))
        _run_cells(config, setting, todo, writer)
        rows = _of_the_grid(writer, todo)
        writer.finish(rows)
    report, html = write_report(workdir, command=command, cells={row.cell_id for row in rows})
    console.print(render_table(rows))
    console.print(f"{len(rows)} cells; {report}, {html}", soft_wrap=True)
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


def _run_cells(config: ml_collections.ConfigDict, setting: Setting, todo: list[Cell], writer: ResultWriter) -> None:
    outcomes: dict[Cell, Outcome] = {}

    def outcome_of(cell: Cell) -> Outcome:
        if cell not in outcomes:
            outcomes[cell] = Outcome.read(writer, cell.id)
        return outcomes[cell]

    finished = writer.finished_cells()
    columns = (
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.description}"),
    )
    with Progress(*columns, auto_refresh=sys.stdout.isatty()) as progress:
        bar = progress.add_task("", total=len(todo))
        for cell in todo:
            progress.update(bar, description=cell.label())
            if cell.id not in finished:
                _run_cell(config, setting, cell, writer, outcomes, outcome_of)
            progress.advance(bar)


def _run_cell(config, setting: Setting, cell: Cell, writer: ResultWriter, outcomes: dict, outcome_of) -> None:
    data = setting.data[cell.task]
    is_reference = cell == cell.resident
    truth = outcome_of(cell.resident).needed if cell.variant.forecast == "truth" else None
    execution = execute(setting, cell, truth)
    outcome = Outcome.of(data, execution)
    if is_reference:
        outcomes[cell] = outcome
    reference, baseline = outcome_of(cell.reference), outcome_of(cell.baseline)
    copies = setting.copies_of(cell)
    copies_bytes = 0 if copies is None else copies.host.host_bytes
    model = setting.model_of(cell)
    row = make_row(config, model, cell, data, execution, outcome, reference, baseline, copies_bytes)
    groups = GroupScores.of(row.cell_id, data, outcome.texts, baseline.texts) if row.scored else None
    arrays = outcome.arrays() if is_reference else None
    files = cell_files(config, row, data, outcome, groups, writer.begun)
    writer.add(row, predictions(data, outcome, baseline), arrays, groups, files)
