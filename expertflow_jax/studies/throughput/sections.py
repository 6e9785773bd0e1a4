"""What a throughput run measures besides its cells: baselines of everything resident, and host bookkeeping.

Each measurement is a line of sections.jsonl once it is done, so that a rerun goes on after it.
"""

import dataclasses
import functools
import time
from collections.abc import Callable
from typing import Any

import ml_collections

from expertflow_jax.harness.row_file import with_keys
from expertflow_jax.harness.workdir import Workdir
from expertflow_jax.simulation.host_cost import HostCell, measure_host
from expertflow_jax.simulation.machines import gpu_machine
from expertflow_jax.studies.throughput.baselines import compare
from expertflow_jax.studies.throughput.rivals import RivalRun, rival_runs
from expertflow_jax.workloads.shapes import find_shape

Line = dict[str, Any]
HOST_POLICIES = ("on_demand", "cache_moe", "expertflow", "oracle")
HOST_LAYERS = (12, 48, 96)
HOST_SHAPE = "qwen3_vl_30b_a3b"  # 128 experts, top 8


def run_sections(
    config: ml_collections.ConfigDict, models: Any, workdir: Workdir, advance: Callable[[str], None], deadline: float
) -> list[Line]:
    """Measures what is not in sections.jsonl yet.

    Args:
      models: a `runner.Models`.
      advance: told what comes next.
      deadline: of `time.monotonic`, after which nothing more is begun.
    """
    lines = workdir.row_file("sections.jsonl", with_keys("section", "kind"))
    finished = {line["section"] for line in lines.rows}
    for label, measure in _measurements(config, models):
        advance(label)
        if label not in finished and time.monotonic() <= deadline:
            lines.append_together([{"section": label, **line} for line in measure()])
    return lines.rows


def count(config: ml_collections.ConfigDict) -> int:
    """How many measurements there are."""
    return len(_measurements(config, None))


def _measurements(config: ml_collections.ConfigDict, models: Any) -> list[tuple[str, Callable[[], list[Line]]]]:
    steps = {size: steps for size, *_, steps in config.windows}

    def baselines(name: str, size: int) -> Callable[[], list[Line]]:
        def measure() -> list[Line]:
            comparisons = compare(models.get(name), size, steps[size], config.repeats, config.reference_python)
            return [{"kind": "baseline", "ratio": one.ratio, **dataclasses.asdict(one)} for one in comparisons]

        return measure

    measurements = [
        (f"resident against fused and transformers: {name}, batch {size}", baselines(name, size))
        for name in config.baseline_models
        for size in config.baseline_batch_sizes
    ]
    measurements += [(label, functools.partial(_rival, run)) for label, run in rival_runs(config)]
    if config.host_cost:
        measurements += [(f"host bookkeeping: {policy}", functools.partial(_host, policy)) for policy in HOST_POLICIES]
    return measurements


def _rival(run: Callable[[], RivalRun]) -> list[Line]:
    return [{"kind": "rival", **dataclasses.asdict(run())}]


def _host(policy: str) -> list[Line]:
    full = find_shape(HOST_SHAPE).full
    machine, lines = gpu_machine("rtx4090", full), []
    for layers in HOST_LAYERS:
        cell = HostCell("throughput", policy, layers, full.num_experts, full.top_k, 1, 0.5)
        cost = measure_host(cell, machine, steps=8, repeats=3, seed=0)
        lines.append(
            {"kind": "host", "policy": policy, "num_layers": layers, "num_experts": full.num_experts}
            | {"host_us": cost.host_us, "host_us_median": cost.host_us_median}
        )
    return lines
