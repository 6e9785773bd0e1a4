"""The set-ups of ExpertFlow's paper, simulated beside its figures; resumable row by row. See configs/paper.py."""

import dataclasses
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ml_collections
from rich.console import Console
from rich.progress import track

from expertflow_jax import names
from expertflow_jax.harness import report
from expertflow_jax.harness.cells import Axis, grids, made_by, number, one_of, values
from expertflow_jax.harness.document import Block, Code, Heading, Paragraph
from expertflow_jax.harness.inputs import claimed_workdir, model_files
from expertflow_jax.harness.row_file import RowFile, with_keys
from expertflow_jax.inference.served import load_with_predictor
from expertflow_jax.offload.variant import Variant
from expertflow_jax.scheduling import FifoScheduler, make_scheduler, scheduler_class
from expertflow_jax.simulation.gpus import GPUS
from expertflow_jax.studies.claims import paper_tables
from expertflow_jax.studies.claims.cells import SpeedCell, Traces
from expertflow_jax.studies.claims.paper_tables import SUBJECT
from expertflow_jax.studies.claims.speed import PROTOCOLS
from expertflow_jax.studies.claims.verdicts import Row
from expertflow_jax.workloads.shapes import SHAPES, find_shape


def cells_of(config: ml_collections.ConfigDict) -> list[SpeedCell]:
    """All cells, each once, those of one trace together.

    Raises:
      InputError: values that cannot be.
    """
    number(1)("config key new_tokens", config.new_tokens)
    names.find("config key gpu:", config.gpu, GPUS)
    axes = (
        Axis("shapes", one_of(SHAPES)),
        Axis("batch_sizes", number(1, config.sequences // 2, unit="two batches at least")),
        Axis("cache_sizes", number(1, unit="slots per layer")),
        Axis("baselines", made_by(Variant.of)),
    )
    cells: dict[SpeedCell, None] = {}
    for where, grid in grids(config, [axis.key for axis in axes], "configs/paper.py"):
        shapes, batch_sizes, cache_sizes, baselines = values(where, grid, axes)
        for place in itertools.product(shapes, batch_sizes, cache_sizes, PROTOCOLS, (SUBJECT, *baselines)):
            shape, batch_size, cache_size, protocol, policy = place
            layers = number(1, unit="MoE layers")(f"config key layers.{shape}", dict(config.layers).get(shape))
            if cache_size < find_shape(shape).full.num_experts:
                cells[SpeedCell("paper", shape, layers, batch_size, cache_size, protocol, policy)] = None
    order = list(dict.fromkeys((cell.shape, cell.batch_size) for cell in cells))
    return sorted(cells, key=lambda cell: order.index((cell.shape, cell.batch_size)))


def scheduled_cells(config: ml_collections.ConfigDict) -> list[tuple[SpeedCell, str]]:
    """The cells of the token schedulers, each with its scheduler.

    Raises:
      InputError: values that cannot be.
    """
    number(1, config.sequences // 2)("config key scheduler_batch_size", config.scheduler_batch_size)
    number(1)("config key scheduler_cache_size", config.scheduler_cache_size)
    scheduler_class(config.scheduler)
    sizes = config.scheduler_batch_size, config.scheduler_cache_size
    cells = [
        SpeedCell("paper", find_name(shape), dict(config.layers)[shape], *sizes, "ours", SUBJECT)
        for shape in config.scheduler_shapes
    ]
    return [(cell, scheduler) for cell in cells for scheduler in (FifoScheduler.name, config.scheduler)]


def find_name(shape: str) -> str:
    """The same name; raises InputError if there is no such shape."""
    return names.find("config key scheduler_shapes:", shape, SHAPES)


def plan(config: ml_collections.ConfigDict) -> None:
    """Prints the number of cells; runs nothing."""
    cells, scheduled = cells_of(config), scheduled_cells(config)
    shapes = ", ".join(dict.fromkeys(cell.shape for cell in cells))
    Console(width=118).print(
        f"{len(cells)} replays on {config.gpu} ({shapes}), {len(scheduled)} with token schedulers; no weights move",
        highlight=False,
    )


def run(config: ml_collections.ConfigDict, workdir: Path, command: str) -> list[Row]:
    """Replays what is not replayed yet; writes results.jsonl, report.md and report.html and prints the tables.

    Raises:
      InputError: bad config, or a workdir of another one.
    """
    cells, scheduled = cells_of(config), scheduled_cells(config)
    models = model_files(config.model) | model_files(config.predictor, "predictor")
    with claimed_workdir(workdir, config, models) as place:
        results = place.row_file("results.jsonl", with_keys("kind", "shape", "seconds"))
        _run_missing(config, cells, scheduled, results)
        _write(config, workdir, results.rows, command)
    return results.rows


def _place(cell: SpeedCell, scheduler: str = "") -> dict[str, Any]:
    """What tells a row from every other."""
    return {"kind": "scheduler" if scheduler else "speed", "scheduler": scheduler, **dataclasses.asdict(cell)}


def _run_missing(
    config: ml_collections.ConfigDict,
    cells: Sequence[SpeedCell],
    scheduled: Sequence[tuple[SpeedCell, str]],
    results: RowFile,
) -> None:
    """Appends the rows that are not there yet."""
    missing = [(cell, scheduler) for cell, scheduler in scheduled if not results.holds(_place(cell, scheduler))]
    missing += [(cell, "") for cell in cells if not results.holds(_place(cell))]
    if not missing:
        return
    traces = Traces(
        *load_with_predictor(config.model, config.predictor), config.sequences, config.new_tokens, config.seed
    )
    for cell, scheduler in track(missing, description="replays"):
        if scheduler:
            planner = make_scheduler(scheduler, batch_size=cell.batch_size, seed=config.seed)
            outcome = traces.play_steps(cell, config.gpu, traces.scheduled(planner, cell.sizes))
        else:
            outcome = traces.play(cell, config.gpu)
        results.append({**_place(cell, scheduler), "slots": cell.slots, **dataclasses.asdict(outcome)})


def _write(config: ml_collections.ConfigDict, workdir: Path, rows: Sequence[Row], command: str) -> None:
    blocks: list[Block] = [
        Heading(1, "The set-ups of ExpertFlow's paper"),
        Code(command),
        Paragraph(paper_tables.TEXT.format(**config.to_dict())),
    ]
    blocks += report.sections(paper_tables.tables(config, rows), Console(width=118))
    blocks += report.attached(workdir, ("config.json", "environment.json"))
    report.write(workdir, blocks)
