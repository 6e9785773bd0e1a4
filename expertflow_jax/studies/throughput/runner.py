"""Runs a throughput config: cell by cell, all variants of a cell in turns; resumable at cells; then the report."""

import contextlib
import dataclasses
import gc
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import ml_collections
import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from expertflow_jax import gpu_caps, interrupts
from expertflow_jax.errors import InputError
from expertflow_jax.files import make_folder, write_atomically, write_json
from expertflow_jax.harness import timeline
from expertflow_jax.harness.inputs import claimed_workdir, model_files
from expertflow_jax.harness.rows import to_csv
from expertflow_jax.harness.workdir import read_json
from expertflow_jax.inference.pregated import gate_bytes
from expertflow_jax.inference.served import load_with_predictor
from expertflow_jax.models.device_form import named_form
from expertflow_jax.offload.budget import MemoryPlan, format_bytes
from expertflow_jax.offload.link import LinkSpec
from expertflow_jax.offload.policies import make_policy
from expertflow_jax.offload.variant import RESIDENT, Variant
from expertflow_jax.simulation.gpus import scaled_link
from expertflow_jax.simulation.limits import limit_of, super_steps
from expertflow_jax.simulation.synthetic import forecast_recall
from expertflow_jax.studies.throughput import sections
from expertflow_jax.studies.throughput.grid import Cell, cells_of
from expertflow_jax.studies.throughput.measure import Repeat, compile_groups, run_once
from expertflow_jax.studies.throughput.results import Row, make_row
from expertflow_jax.studies.throughput.simulated import measured_costs, simulated_seconds
from expertflow_jax.workloads import setups
from expertflow_jax.workloads.recorded import record_questions
from expertflow_jax.workloads.setups import Setup
from expertflow_jax.workloads.windows import Window, make_window

REFERENCE_SEQUENCES = 6
TIMELINE_SECONDS = 0.1  # drawn; trace.json holds all


class Models:
    """Builds each model when its first cell comes. All stay, cut down as they are: cells come in the order of what
    matters most, and a model built anew is compiled anew."""

    def __init__(self, config: ml_collections.ConfigDict):
        self._config = config
        self._setups: dict[tuple[str, bool], Setup] = {}
        self._form = named_form(config.get("device_form"))
        self.model, self.predictor = load_with_predictor(config.model, config.predictor, self._form)
        steps = max(steps for *_, steps in config.windows)
        self.recording = record_questions(self.model, config.sequences, steps, config.seed)
        self._uses = setups.predicted_uses(self.predictor, self.recording)

    def get(self, name: str, weights: bool = True) -> Setup:
        """The model of this name; a shape without `weights` is enough for a plan."""
        if name == self.model.name:
            weights = True
        if (name, weights) not in self._setups:
            if name == self.model.name:
                setup = setups.trained_setup(self.model, self.recording, self._uses, self.predictor)
            else:
                options = self.predictor, self._config.seed, weights, self._form
                setup = setups.shape_setup(name, self.recording, self._uses, *options)
            self._setups[name, weights] = setup
        return self._setups[name, weights]

    def window(self, cell: Cell, weights: bool = True) -> Window:
        steps = {size: steps for size, *_, steps in self._config.windows}[cell.batch_size]
        window = make_window(self.get(cell.model, weights), cell.phase, cell.batch_size, cell.batches, steps)
        return _ready(dataclasses.replace(window, batches_per_block=cell.batches_per_block))

    def reference_window(self, name: str) -> Window:
        """The reference work of `gpus.py`: decode steps of one sequence at a time."""
        steps = max(steps for *_, steps in self._config.windows)
        return _ready(make_window(self.get(name), "decode", 1, REFERENCE_SEQUENCES, steps))


def _ready(window: Window) -> Window:
    if window.phase == "decode" and not window.setup.replayed:
        window.fill_caches()
    return window


def plan(config: ml_collections.ConfigDict) -> None:
    """Prints the cells with their memory; measures nothing."""
    cells, console, models = cells_of(config), Console(width=118), Models(config)
    for cell in cells:
        window = models.window(cell, weights=False)
        memory = window.plan(cell.cache_fraction, True)
        sizes = [*memory.describe(), ("host", memory.host_bytes)]
        parts = ", ".join(f"{part} {format_bytes(size)}" for part, size in sizes)
        console.print(f"{cell.label()}: {window.num_steps} steps, {window.tokens} tokens; {parts}", highlight=False)
    runs = sum(len(cell.variants) for cell in cells) * (config.repeats + 1)
    console.print(f"{len(cells)} cells, {runs} runs; link {config.link}")


def run(config: ml_collections.ConfigDict, workdir: Path, command: str) -> list[Row]:
    """Measures what is not finished yet, writes all files, returns all rows.

    Raises:
      InputError: bad config, or a workdir of another one.
    """
    from expertflow_jax.studies.throughput.report import write_report

    deadline = time.monotonic() + 60 * config.minutes
    cells = cells_of(config)
    console = Console(width=None if sys.stdout.isatty() else 118)
    files = model_files(config.model) | model_files(config.predictor, "predictor")
    with claimed_workdir(workdir, config, files) as place:
        results = place.row_file("results.jsonl", Row.from_json, Row.to_json)
        whole = _whole_cells(results.rows, cells)
        results.keep(lambda row: row.cell in whole)
        models = Models(config)
        too_large = _too_large(models, cells)
        alone = [cell for cell in cells if cell.batches_per_block == 1]
        headline = next((cell for cell in alone if cell.key[:4] == tuple(config.headline)), None)
        with _progress(len(cells) + sections.count(config)) as advance:
            lines = sections.run_sections(config, models, place, advance, deadline)
            for cell in cells:
                advance(cell.label())
                if cell.key in too_large:
                    continue
                if cell.key not in whole and time.monotonic() <= deadline:
                    results.append_together(_run_cell(config, models, cell, workdir, cell is headline))
                    whole.add(cell.key)
        left = [cell.label() for cell in cells if cell.key not in whole and cell.key not in too_large]
        write_atomically(workdir / "results.csv", to_csv(results.rows))
        write_report(workdir, results.rows, lines, left, config, command, console)
    return results.rows


def _too_large(models: Models, cells: Sequence[Cell]) -> set[tuple]:
    """Keys of the cells whose reference, everything resident, this device does not hold; says so on standard error."""
    keys = set()
    for cell in cells:
        plan = models.window(cell, weights=False).plan(1.0, False)
        try:
            gpu_caps.check(gpu_caps.Needs(device_bytes=plan.total_bytes))
        except InputError as error:
            print(f"warning: {cell.label()} is left out, everything resident does not fit: {error}", file=sys.stderr)
            keys.add(cell.key)
    return keys


def _whole_cells(rows: list[Row], cells: list[Cell]) -> set[tuple]:
    """Keys of the config's cells of which every variant has its row."""
    pairs = {(*row.cell, row.variant) for row in rows}
    return {cell.key for cell in cells if all((*cell.key, name) in pairs for name in cell.variants)}


@contextlib.contextmanager
def _progress(total: int) -> Iterator[Any]:
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, TextColumn("{task.description}"), auto_refresh=sys.stdout.isatty()) as progress:
        bar = progress.add_task("", total=total, completed=-1)
        yield lambda label: progress.update(bar, description=label, advance=1)
        progress.update(bar, completed=total, description="")


def link_of(config: ml_collections.ConfigDict, models: Models, name: str, workdir: Path) -> LinkSpec:
    """The model's link; measured once per workdir, so that a resumed run has the same."""
    path = workdir / "links.json"
    known = read_json(path) if path.exists() else {}
    if name not in known:
        setup = models.get(name)
        seconds = reference_seconds(models, name)
        spec = scaled_link(config.link, setup.full, setup.store.expert_bytes, seconds)
        known[name] = dataclasses.asdict(spec) | {"layer_seconds": seconds}
        write_json(path, known)
    return LinkSpec(**{key: value for key, value in known[name].items() if key != "layer_seconds"})


def reference_seconds(models: Models, name: str, repeats: int = 7) -> float:
    """The reference work of `gpus.py`: a resident decode step of one sequence, per MoE layer, median of runs."""
    window = models.reference_window(name)
    runs = [run_once(window, RESIDENT, 0, LinkSpec()) for _ in range(repeats + 1)][1:]
    return float(np.median([run.seconds for run in runs])) / window.num_steps / window.setup.store.num_layers


def _run_cell(
    config: ml_collections.ConfigDict, models: Models, cell: Cell, workdir: Path, is_headline: bool
) -> list[Row]:
    window = models.window(cell)
    setup = window.setup
    link = link_of(config, models, cell.model, workdir)
    variants = {name: Variant.of(name) for name in cell.variants}
    resident_plan = window.plan(1.0, False)
    plans = {
        name: resident_plan if v.whole else _plan_of(window, v, cell.cache_fraction) for name, v in variants.items()
    }
    compile_groups(window)
    reference = run_once(window, RESIDENT, 0, link)  # compiles, and says what each step needs
    warm = {
        name: run_once(window, variants[name], plans[name].slots, link, reference.needed, sample_memory=True)
        for name in cell.variants
    }
    before = _compilations(setup)
    repeats: dict[str, list[Repeat]] = {name: [] for name in cell.variants}
    gc.freeze()  # what stays need not be looked through before every run
    for turn in range(config.repeats):
        order = cell.variants[turn % len(cell.variants) :] + cell.variants[: turn % len(cell.variants)]
        for name in order:
            interrupts.check()
            repeats[name].append(run_once(window, variants[name], plans[name].slots, link, reference.needed))
    gc.unfreeze()
    made = _compilations(setup) - before
    resident = repeats.get(RESIDENT.label) or [run_once(window, RESIDENT, 0, link)]
    resident_seconds = float(np.median([repeat.seconds for repeat in resident]))
    forecasts = [own for block in window.forecasts() for own, _ in block]
    recalls = {"truth": 1.0, "predictor": forecast_recall(reference.needed, forecasts)}  # others make no horizons
    costs = measured_costs(window, resident_seconds)
    rows = []
    for name, runs in repeats.items():
        variant, inside = variants[name], runs[0].inside
        limits = [
            limit_of(
                super_steps(reference.needed, len(window.blocks), size),
                plans[name].slots,
                inside,
                resident_seconds=resident_seconds,
                expert_bytes=setup.store.expert_bytes,
                link=link,
            )
            for size in (1, len(window.blocks))
        ]
        rows.append(
            make_row(
                window,
                variant,
                cell.cache_fraction,
                runs,
                plan=plans[name],
                resident_plan=resident_plan,
                peak=warm[name].peak_device_bytes,
                limit=limits[0],
                best_order=limits[1],
                recall=recalls.get(variant.forecast),
                new_compilations=made,
                link=link,
                simulated=simulated_seconds(window, variant, plans[name].slots, link, costs),
            )
        )
    if is_headline and "expertflow" in repeats:
        middle = sorted(repeats["expertflow"], key=lambda repeat: repeat.seconds)[len(repeats["expertflow"]) // 2]
        title = f"expertflow, {cell.label()}"
        write_atomically(workdir / "trace.json", timeline.trace_json(middle.events, title))
        timeline.draw(middle.events, make_folder(workdir / "plots") / "timeline.png", title, TIMELINE_SECONDS)
    return rows


def _plan_of(window: Window, variant: Variant, cache_fraction: float) -> MemoryPlan:
    """The window's, with the pre-gates that the variant runs."""
    plan = window.plan(cache_fraction, variant.forecast == "predictor")
    gates = gate_bytes(make_policy(variant.policy), window.setup)
    return dataclasses.replace(plan, dense_bytes=plan.dense_bytes + gates)


def _compilations(setup: Setup) -> int:
    return setup.own_stages.compilations()
