"""Runs a config of blocks: cell by cell, resumable at cells; then the report. Nothing here depends on the machine."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ml_collections
from rich.console import Console
from rich.progress import track

from expertflow_jax.errors import InputError
from expertflow_jax.harness.fields import checked
from expertflow_jax.harness.inputs import claimed_workdir, model_files
from expertflow_jax.harness.row_file import with_keys
from expertflow_jax.offload.budget import MemoryPlan, format_bytes
from expertflow_jax.offload.variant import Variant
from expertflow_jax.simulation.machines import gpu_machine
from expertflow_jax.studies.blocks.grid import Cell, cells_of
from expertflow_jax.studies.blocks.measure import figures, measure
from expertflow_jax.studies.blocks.memory import block_plan, predictor_of, request_size, sizes_of
from expertflow_jax.studies.blocks.traces import Traces
from expertflow_jax.workloads.shapes import find_shape

Row = dict[str, Any]
RECORDED_PROMPT = 27  # tokens of the longest recorded one, for the memory of cells that take prompts as recorded


def plan_of(config: ml_collections.ConfigDict, cell: Cell) -> MemoryPlan:
    """How the cell divides device memory.

    Raises:
      InputError: the budget does not hold the block.
    """
    directory = config.models[cell.model]
    prompt = cell.prompt_tokens or RECORDED_PROMPT
    return block_plan(
        directory,
        request_size(sizes_of(directory), config.batch_size, prompt, cell.new_tokens + 1, 0),
        cell.batches_per_block,
        forecasts=Variant.of(cell.variant).forecast == "predictor",
        memory_budget=cell.memory_budget or None,
        cache_fraction=cell.cache_fraction or None,
    )


def plans(config: ml_collections.ConfigDict) -> list[tuple[Cell, MemoryPlan | None]]:
    """Every cell with its memory; None where the budget does not hold so many batches."""
    pairs: list[tuple[Cell, MemoryPlan | None]] = []
    for cell in cells_of(config):
        try:
            pairs.append((cell, plan_of(config, cell)))
        except InputError:
            if not cell.memory_budget:
                raise
            pairs.append((cell, None))
    return pairs


def plan(config: ml_collections.ConfigDict) -> None:
    """Prints the cells and their memory; runs nothing."""
    console = Console(width=118)
    pairs = plans(config)
    for cell, memory in pairs:
        text = (
            "the block does not fit"
            if memory is None
            else f"{memory.slots} slots of {format_bytes(memory.expert_bytes)}"
        )
        console.print(f"{cell.label()}: {text}", highlight=False)
    console.print(f"{len(pairs)} cells; nothing is loaded but the recorded model, and nothing is measured")


def run(config: ml_collections.ConfigDict, workdir: Path, command: str) -> list[Row]:
    """Replays what is not replayed yet, writes results.jsonl and the report, returns all rows.

    Raises:
      InputError: bad config, or a workdir of another one.
    """
    from expertflow_jax.studies.blocks.report import write_report

    pairs = plans(config)
    models = model_files(config.model) | model_files(config.predictor, "predictor")
    with claimed_workdir(workdir, config, models) as place:
        results = place.row_file("results.jsonl", with_keys("cell", "tokens_per_second"))
        finished = {row["cell"] for row in results.rows}
        missing = [(number, *pair) for number, pair in enumerate(pairs) if number not in finished]
        missing = [entry for entry in missing if entry[2] is not None]
        traces = Traces(config, max(cell.sequences for cell, _ in pairs)) if missing else None
        for number, cell, memory in track(missing, description="cells"):
            assert traces is not None
            assert memory is not None
            results.append(_row(config, traces, number, cell, memory))
        left_out = [cell for cell, memory in pairs if memory is None]
        write_report(workdir, results.rows, left_out, config, command, Console(width=118))
    return results.rows


def _row(config: ml_collections.ConfigDict, traces: Traces, number: int, cell: Cell, memory: MemoryPlan) -> Row:
    batches = traces.batches(cell.model, cell.sequences, cell.prompt_tokens, cell.new_tokens)
    variant = Variant.of(cell.variant)
    forecasts = variant.forecast == "predictor"
    predictor_bytes = predictor_of(config.models[cell.model]).nbytes if forecasts else 0
    machine = gpu_machine(cell.gpu, find_shape(cell.model).full, predictor_bytes)
    outcome = measure(batches, variant, cell.batches_per_block, machine, memory.slots)
    row = {
        "cell": number,
        "model": cell.model,
        "machine": machine.name,
        "variant": cell.variant,
        "policy": variant.name,
        "forecast": variant.forecast,
        "room": cell.room,
        "batch_size": config.batch_size,
        "batches_per_block": cell.batches_per_block,
        "window": cell.sequences,
        "prompt_tokens": cell.prompt_tokens,
        "new_tokens": cell.new_tokens,
        **figures(outcome, memory),
    }
    return checked("blocks", row)


def by_cell(rows: Sequence[Row]) -> list[Row]:
    """In the order of the config."""
    return sorted(rows, key=lambda row: row["cell"])
