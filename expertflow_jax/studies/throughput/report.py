"""The throughput run's report: report.md, report.html, plots/*.png and throughput.json, from its rows alone."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ml_collections
from rich.console import Console

from expertflow_jax.files import write_atomically
from expertflow_jax.harness import report
from expertflow_jax.harness.document import (
    Block,
    Bullets,
    Code,
    Heading,
    Paragraph,
    Picture,
)
from expertflow_jax.studies.throughput import fidelity, tables
from expertflow_jax.studies.throughput.plots import draw_fractions
from expertflow_jax.studies.throughput.results import Row, throughput_json

_CELLS = (
    "Variants of a cell ran in turns in one process; medians, with the least and the greatest in brackets. Times are "
    "milliseconds of the window: `stall` waiting for experts, `host` in the engine's books, `compute` the rest. No "
    "lossless run is faster than the limit, max(resident time, bytes that an offline-optimal cache moves / bandwidth). "
    "`expertflow` forecasts with the trained predictor, `expertflow(truth)` knows the true path. @0 is a single slot."
)
_BLOCKS = (
    "Batches that go through the layers together, M at a time: speed over that of `cache_moe` batch by batch in the "
    "same window, then in brackets of the limit of the order that was run, and of that of the best order (the whole "
    "window as one block)."
)
_BASELINES = (
    "The same weights and token ids, everything resident, every model routing for itself, in turns: our engine, layer "
    "by layer, against one jit of the whole model (two ways to compute experts; the faster counts) and against Hugging "
    "Face transformers. The ratio is the engine's throughput over the contender's."
)
_RIVALS = (
    "Decoding by engines that offload too, each in a process of its own on the same card, where it is installed: "
    "accelerate moves whole layers, llama.cpp keeps experts. Random weights, and routing of their own."
)
_HOST = (
    "CPU time of the engine per layer-step at 128 experts, top 8, half of them in slots, one sequence, without weights "
    "(`eval.simulate` measures more)."
)
_MEMORY = (
    "Device memory at the least budget that works, a single expert slot, against everything resident: dense "
    "parameters, KV cache and workspace stay. `experts only` is what is saved of the experts' memory, which nears the "
    "paper's figure as experts grow to most of a model."
)


def write_report(
    workdir: Path,
    rows: Sequence[Row],
    lines: Sequence[dict[str, Any]],
    left: Sequence[str],
    config: ml_collections.ConfigDict,
    command: str,
    console: Console,
) -> None:
    """Writes the report and prints its tables.

    Args:
      lines: of sections.jsonl.
      left: labels of cells that the time did not suffice for.
    """
    targets = tables.target_grid(rows, lines)
    more = {"command": command, "sections": list(lines), "targets": [list(row) for row in targets.rows]}
    result = throughput_json(rows, tuple(config.headline), more)
    write_atomically(workdir / "throughput.json", json.dumps(result, indent=2).encode())
    blocks: list[Block] = [Heading(1, "Throughput of cache policies against the physical limit"), Code(command)]
    blocks.append(Paragraph(f"Real clock, link {config.link}, {config.repeats} repeats in turns after warm-up."))
    if not config.reference_python and config.baseline_models:
        left_out = "Hugging Face transformers was not measured: config key `reference_python` names no interpreter."
        blocks.append(Paragraph(left_out))
        console.print(left_out.replace("`", ""), highlight=False)
    if left:
        text = f"{len(left)} cells did not fit into {config.minutes:g} minutes; the same command measures them."
        blocks += [Paragraph(text), Bullets(left)]
        console.print(text, highlight=False)
    timeline = workdir / "plots" / "timeline.png"
    if timeline.exists():
        text = "The headline cell's timeline (median repeat, its beginning); trace.json opens in ui.perfetto.dev."
        blocks += [Heading(2, "Timeline"), Picture(timeline, text)]
    pictures = draw_fractions(rows, workdir / "plots")
    if pictures:
        blocks += [Heading(2, "Over cache fractions"), *(Picture(path, text) for path, text in pictures)]
    simulated = fidelity.draw(rows, workdir / "plots" / "simulated.png")
    if simulated:
        blocks += [Heading(2, "Simulated beside measured"), *(Picture(path, text) for path, text in simulated)]
    grids = [
        ("Targets", "Each a ratio within this run; worst and median over the cells that it speaks of.", targets),
        ("Blocks of batches", _BLOCKS, tables.block_grid(rows)),
        ("Least memory", _MEMORY, tables.memory_grid(rows)),
        ("Prefill", _CELLS, tables.cell_grid([row for row in rows if row.phase == "prefill"])),
        ("Decode", _CELLS, tables.cell_grid([row for row in rows if row.phase == "decode"])),
        ("The simulator's error", fidelity.TEXT, fidelity.summary_grid(rows)),
        ("The simulator's error by cell", "Measured tokens per second, and the error.", fidelity.cell_grid(rows)),
        ("Everything resident", _BASELINES, tables.baseline_grid(lines)),
        ("Other engines", _RIVALS, tables.rival_grid(lines)),
        ("Host bookkeeping", _HOST, tables.host_grid(lines)),
    ]
    blocks += report.sections(grids, console)
    blocks += report.attached(workdir, ("links.json", "config.json", "environment.json"))
    report.write(workdir, blocks)
    console.print(f"wrote {workdir / 'report.md'}, report.html, throughput.json, trace.json", highlight=False)
