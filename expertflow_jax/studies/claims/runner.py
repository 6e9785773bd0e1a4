"""Runs the experiments of a claims config, resumable row by row, and writes the verdicts. See configs/claims.py.

Axes: L MoE layers, E experts, K top-k.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

import ml_collections
from rich.console import Console
from rich.progress import track

from expertflow_jax import names
from expertflow_jax.files import write_atomically
from expertflow_jax.harness.cells import number
from expertflow_jax.harness.document import to_markdown
from expertflow_jax.harness.inputs import claimed_workdir, model_files
from expertflow_jax.harness.row_file import with_keys
from expertflow_jax.inference.loading import LoadedModel
from expertflow_jax.inference.served import load_with_predictor
from expertflow_jax.offload.store import ExpertSizes
from expertflow_jax.offload.variant import Variant, new_engine
from expertflow_jax.simulation.costs import ComputeCosts
from expertflow_jax.simulation.event_log import record
from expertflow_jax.simulation.gpus import GPUS
from expertflow_jax.simulation.machines import recorded_machine
from expertflow_jax.simulation.replay import ReplayStep
from expertflow_jax.studies.claims.cells import SpeedCell, Traces
from expertflow_jax.studies.claims.gates import measure_gates
from expertflow_jax.studies.claims.mechanisms import MECHANISMS, Measures, Run
from expertflow_jax.studies.claims.report import claims_table, report
from expertflow_jax.studies.claims.speed import PROTOCOLS
from expertflow_jax.studies.claims.verdicts import Row, Verdict, judge
from expertflow_jax.workloads.recorded import made_up_questions
from expertflow_jax.workloads.shapes import find_shape

GATES = "gates"  # the mechanism that has an experiment of its own


def cells_of(config: ml_collections.ConfigDict) -> list[SpeedCell]:
    """All speed cells, those of one trace together.

    Raises:
      InputError: values that cannot be.
    """
    number(1)("config key new_tokens", config.new_tokens)
    number(0.0, 1.0, above=True, unit="it is slots / experts")("config key cache_fraction", config.cache_fraction)
    names.find("config key gpu:", config.gpu, GPUS)
    for claim in config.mechanisms.values():
        names.find("config key mechanisms: mechanism", claim.mechanism, (*MECHANISMS, GATES))
    cells = []
    for name, claim in config.speed.items():
        for shape, num_layers in claim.shapes:
            experts = find_shape(shape).full.num_experts
            for size in config.batch_sizes:
                number(1, config.sequences // 2, unit="two batches at least")("config key batch_sizes", size)
                cells += [
                    SpeedCell(name, shape, num_layers, size, cache_size, protocol, policy)
                    for cache_size in claim.cache_sizes
                    if cache_size < experts
                    for protocol in PROTOCOLS
                    for policy in ("expertflow", *claim.baselines)
                ]
    return cells


def plan(config: ml_collections.ConfigDict) -> None:
    """Prints the claims and cells; runs nothing."""
    console = Console(width=118)
    cells = cells_of(config)
    for claims in (config.speed, config.mechanisms):
        for claim in claims.values():
            console.print(f"claim {claim.number}: {claim.text}", highlight=False)
    console.print(f"{len(cells)} replays on {config.gpu}, {len(config.mechanisms)} event logs; no weights move")


def run(config: ml_collections.ConfigDict, workdir: Path, command: str) -> list[Verdict]:
    """Runs what is not finished yet; writes results.jsonl, claims.json and claims.md and prints the verdicts.

    Raises:
      InputError: bad config, or a workdir of another one.
    """
    cells = cells_of(config)
    models = model_files(config.model) | model_files(config.predictor, "predictor")
    with claimed_workdir(workdir, config, models | {"costs": Path(config.costs)}) as place:
        results = place.row_file("results.jsonl", with_keys("kind", "claim"))
        _run_missing(config, cells, results)
        verdicts = judge(config, results.rows)
        listed = [dataclasses.asdict(verdict) for verdict in verdicts]
        write_atomically(workdir / "claims.json", json.dumps(listed, indent=1) + "\n")
        write_atomically(workdir / "claims.md", to_markdown(report(config, results.rows, verdicts, command), workdir))
    Console(width=118).print(to_markdown([claims_table(verdicts)]), highlight=False, markup=False, soft_wrap=True)
    return verdicts


def _run_missing(config: ml_collections.ConfigDict, cells: list[SpeedCell], results: Any) -> None:
    """Appends the rows that are not there yet."""

    speeds = [cell for cell in cells if not results.holds(_place(cell))]
    mechanisms = [n for n in config.mechanisms if not results.holds({"kind": "mechanism", "claim": n})]
    if not speeds and not mechanisms:
        return
    model, predictor = load_with_predictor(config.model, config.predictor)
    traces = Traces(model, predictor, config.sequences, config.new_tokens, config.seed)
    for name in mechanisms:
        claim = config.mechanisms[name]
        if claim.mechanism == GATES:
            measures = _measure_gates(config, claim, model)
        else:
            measures = _measure(config, claim, model, traces.steps(None, min(config.batch_sizes)))
        results.append({"kind": "mechanism", "claim": name, "policy": claim.policy, "measures": measures})
    for cell in track(speeds, description="replays"):
        outcome = traces.play(cell, config.gpu)
        results.append({**_place(cell), "slots": cell.slots, **dataclasses.asdict(outcome)})


def _place(cell: SpeedCell) -> Row:
    """What tells a row from every other."""
    return {"kind": "speed", **dataclasses.asdict(cell)}


def _measure_gates(config: ml_collections.ConfigDict, claim: Any, model: LoadedModel) -> Measures:
    """The measures of claim 5 on the trained model's answers."""
    data = made_up_questions(model, config.sequences, config.seed)
    slots = int(config.cache_fraction * model.store.num_layers * model.store.num_experts)
    return measure_gates(model, data, claim.policy, slots, config.link, ComputeCosts.load(config.costs))


def _measure(config: ml_collections.ConfigDict, claim: Any, model: Any, steps: list[ReplayStep]) -> Measures:
    """The measures of a mechanism on the trained model's own routing."""
    layers, experts = steps[0].rows.shape
    machine = recorded_machine(config.costs, config.link, model.store.expert_bytes)
    slots = int(config.cache_fraction * layers * experts)
    sizes = ExpertSizes(layers, experts, machine.expert_bytes)
    with new_engine(sizes, Variant.of(claim.policy), slots, machine.link) as engine:
        log = record(engine, steps, machine.costs)
    return MECHANISMS[claim.mechanism](Run(log, steps, layers, slots))
