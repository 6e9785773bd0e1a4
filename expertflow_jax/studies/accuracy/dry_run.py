"""What a study would run and the memory that it needs, without running it."""

from pathlib import Path

import ml_collections
from rich.console import Console

from expertflow_jax.harness.progress import wide_console
from expertflow_jax.offload.budget import format_bytes
from expertflow_jax.studies.accuracy.execution import Setting
from expertflow_jax.studies.accuracy.grid import Cell
from expertflow_jax.studies.accuracy.opening_lines import opening_lines
from expertflow_jax.studies.accuracy.preparation import ask, check, launcher_of, prepare


def plan(config: ml_collections.ConfigDict, workdir: Path) -> None:
    """Prints what the study would run and the memory that each size needs; writes no results."""
    todo = check(config)
    asked = ask(config, workdir, todo)
    setting = prepare(config, asked, todo)
    console = wide_console()
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
    for line in opening_lines(asked, todo, config.num_examples):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    printed: set[tuple] = set()
    for cell in todo:
        memory = setting.plan(cell)
        key = (cell.task, memory, cell.expert_dtype)
        if key not in printed:
            printed.add(key)
            parts = ", ".join(f"{part} {format_bytes(size)}" for part, size in memory.describe())
            dtype = f" {cell.expert_dtype}" if cell.expert_dtype else ""
            console.print(f"{cell.task}{dtype} @{cell.memory_budget or f'{cell.cache_fraction:g}'}: {parts}")
    _print_workers(console, config, setting, todo)
    console.print(f"{len(todo)} cells")
    for cell in todo:
        console.print(f"  {cell.label()}", highlight=False)


def _print_workers(console: Console, config: ml_collections.ConfigDict, setting: Setting, todo: list[Cell]) -> None:
    """Who runs the cells, and the memory of all workers together: each has the model, and a cell at a time."""
    launcher, workers = launcher_of(config)
    if not launcher:
        console.print("launcher: this process, one cell at a time")
        return
    host = sum(model.host.host_bytes for model in (setting.model, *setting.quantized.values()))
    device = max(setting.plan(cell).total_bytes for cell in todo)
    console.print(
        f"launcher {launcher}: {workers} workers, each with {format_bytes(host)} of experts in host memory and up to "
        f"{format_bytes(device)} on its device; together {format_bytes(workers * host)} and "
        f"{format_bytes(workers * device)}"
    )
