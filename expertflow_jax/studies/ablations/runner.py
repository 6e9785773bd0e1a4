"""Runs the variants of `variants.py` on recorded routing and tabulates them. Nothing here depends on the machine."""

import dataclasses
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ml_collections
from rich.console import Console
from rich.progress import track

from expertflow_jax.files import write_atomically
from expertflow_jax.harness.cells import Axis, number, values
from expertflow_jax.harness.document import Block, Code, Grid, Heading, to_markdown
from expertflow_jax.harness.fields import checked
from expertflow_jax.harness.inputs import claimed_workdir, model_files
from expertflow_jax.harness.row_file import RowFile, with_keys
from expertflow_jax.inference.served import load_with_predictor
from expertflow_jax.simulation.machines import gpu_machine, recorded_machine
from expertflow_jax.studies.ablations.variants import BASE, VARIANTS, Build
from expertflow_jax.studies.ablations.variants import run as replay_build
from expertflow_jax.workloads.recorded import record_questions, recorded_steps
from expertflow_jax.workloads.shapes import find_shape

Row = dict[str, Any]


def settings(config: ml_collections.ConfigDict) -> list[tuple[str, int, float]]:
    """(model, batch size, cache fraction) of every column.

    Raises:
      InputError: values that cannot be.
    """
    number(1)("config key new_tokens", config.new_tokens)
    for name, num_layers in config.shapes:
        find_shape(name)
        number(1, unit="layers")(f"config key shapes: {name}", num_layers)
    axes = (
        Axis("batch_sizes", number(1, config.sequences, unit="config key sequences is the most")),
        Axis("cache_fractions", number(0.0, 1.0, above=True, unit="it is slots / experts")),
    )
    models = (config.model, *(name for name, _ in config.shapes))
    return list(itertools.product(models, *values("config key ", config, axes)))


def plan(config: ml_collections.ConfigDict) -> None:
    """Prints what would run; runs nothing."""
    console = Console(width=118)
    for name, size, fraction in settings(config):
        console.print(f"{name}, batch {size}, cache fraction {fraction:g}", highlight=False)
    console.print(f"{len(VARIANTS)} variants each: {', '.join(variant.name for variant in VARIANTS)}; no weights move")


def run(config: ml_collections.ConfigDict, workdir: Path, command: str) -> list[Row]:
    """Replays what is not replayed yet; writes ablations.jsonl and ablations.md and prints the tables.

    Raises:
      InputError: bad config, or a workdir of another one.
    """
    columns = settings(config)
    models = model_files(config.model) | model_files(config.predictor, "predictor")
    with claimed_workdir(workdir, config, models | {"costs": Path(config.costs)}) as place:
        results = place.row_file("ablations.jsonl", with_keys("variant", "seconds"))
        _run_missing(config, columns, results)
        grids = tables(results.rows, columns)
        blocks: list[Block] = [Heading(1, "The engine, built otherwise"), Code(command), *grids]
        write_atomically(workdir / "ablations.md", to_markdown(blocks, workdir))
    console = Console(width=118)
    console.print(to_markdown(grids, workdir), highlight=False, markup=False, soft_wrap=True)
    return results.rows


def _place(variant: Build, column: tuple[str, int, float]) -> Row:
    """What tells a row from every other."""
    name, size, fraction = column
    return {"variant": variant.name, "model": name, "batch_size": size, "cache_fraction": fraction}


def _run_missing(
    config: ml_collections.ConfigDict, columns: Sequence[tuple[str, int, float]], results: RowFile
) -> None:
    """Appends the rows that are not there yet, in the order of columns and variants."""
    places = [(variant, column, _place(variant, column)) for column in columns for variant in VARIANTS]
    missing = [(variant, column, place) for variant, column, place in places if not results.holds(place)]
    if not missing:
        return
    model, predictor = load_with_predictor(config.model, config.predictor)
    machines = {config.model: recorded_machine(config.costs, config.link, model.store.expert_bytes)}
    shapes: dict[str, tuple[int, int, int] | None] = {config.model: None}
    for name, num_layers in config.shapes:
        full = find_shape(name).full
        machines[name] = gpu_machine(config.gpu, full)
        shapes[name] = (num_layers, full.num_experts, full.top_k)
    recording = record_questions(model, config.sequences, config.new_tokens, config.seed)
    traces: dict[tuple[str, int], Any] = {}
    for variant, (name, size, fraction), place in track(missing, description="variants"):
        if (name, size) not in traces:
            traces = {(name, size): recorded_steps(recording, predictor, shapes[name], size)}
        outcome = replay_build(variant, traces[name, size], machines[name], fraction, size)
        results.append(checked("ablations", {**place, **dataclasses.asdict(outcome)}))


def tables(rows: Sequence[Row], columns: Sequence[tuple[str, int, float]]) -> list[Grid]:
    """Speed and bytes of the variants beside the engine as built; then how far it runs without a miss."""

    def find(variant: Build, column: tuple[str, int, float]) -> Row:
        wanted = _place(variant, column)
        return next(row for row in rows if wanted.items() <= row.items())

    heads = [f"{name}, {size} at {fraction:g}" for name, size, fraction in columns]
    speeds = []
    for variant in VARIANTS:
        cells = []
        for column in columns:
            base, row = find(BASE, column), find(variant, column)
            speed = base["seconds"] / row["seconds"]
            moved = row["bytes_transferred"] / max(base["bytes_transferred"], 1)
            cells.append(f"{speed:.3f}x / {moved:.2f}" if variant is not BASE else f"1 / 1 ({row['hit_rate']:.2f})")
        speeds.append((variant.name, *cells))
    ahead = []
    for head, column in zip(heads, columns, strict=True):
        base = find(BASE, column)
        shares = (f"{base['steps_without_miss']:.3f}", f"{base['layers_without_miss']:.3f}")
        ahead.append((head, *shares, f"{base['layers_until_miss']:.1f}"))
    return [
        Grid(("speed / bytes (hit rate)", *heads), speeds, (False, *[True] * len(heads))),
        Grid(
            ("decode steps", "without a miss", "layers without one", "layers until the first"),
            ahead,
            (False, True, True, True),
        ),
    ]
