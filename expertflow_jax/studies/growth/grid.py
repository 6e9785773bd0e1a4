"""The cells of a scale config, checked before any work, and the rows that they give. See configs/scale_cpu.py.

Rows are JSON lines of two kinds, `host` and `scheduler`; microseconds and seconds are CPU time unless named simulated.
"""

import dataclasses
import itertools
from typing import Any

import ml_collections

from expertflow_jax.errors import InputError
from expertflow_jax.harness.cells import Axis, made_by, number, values
from expertflow_jax.harness.fields import checked
from expertflow_jax.offload.variant import Variant
from expertflow_jax.scheduling import scheduler_class
from expertflow_jax.simulation.host_cost import HostCell
from expertflow_jax.simulation.machines import Machine, gpu_machine, recorded_machine
from expertflow_jax.studies.growth.schedulers import Workload
from expertflow_jax.workloads.shapes import find_shape


@dataclasses.dataclass(frozen=True)
class SchedulerCell:
    """One scheduler on one window of one workload."""

    workload: Workload
    scheduler: str
    window: int

    def label(self) -> str:
        return f"{self.scheduler}, window {self.window}, {self.workload.name}"


def machine_of(config: ml_collections.ConfigDict) -> Machine:
    """Of the host sweeps and the large workload."""
    return gpu_machine(config.gpu, find_shape(config.shape).full)


def host_cells(config: ml_collections.ConfigDict) -> list[HostCell]:
    """All cells of the host sweeps, each once.

    Raises:
      InputError: values that cannot be.
    """
    layers, experts, top_k = config.num_layers, config.num_experts, config.top_k
    axes = (
        Axis("layers", number(1)),
        Axis("experts", number(top_k)),
        Axis("batch_sizes", number(1)),
        Axis("policies", made_by(Variant.of)),
    )
    *sweeps, policies = values("config key ", config, axes)
    if not all(sweeps):
        raise InputError("config key layers, experts or batch_sizes: want one number at least")
    for key in ("steps", "repeats"):
        number(1)(f"config key {key}", config[key])
    number(0.0, 1.0, above=True, unit="it is slots / experts")("config key cache_fraction", config.cache_fraction)
    by_place: dict[tuple, HostCell] = {}

    def add(sweep: str, policy: str, layers: int, experts: int, size: int, clock: str = "virtual", cache=None) -> None:
        cell = HostCell(sweep, policy, layers, experts, top_k, size, cache or config.cache_fraction, clock)
        by_place.setdefault(dataclasses.astuple(cell), cell)

    for policy in policies:
        for size in config.batch_sizes:
            add("target", policy, layers, experts, size, cache=1.0)  # nothing travels
            add("target", policy, layers, experts, size)
            add("target", policy, layers, experts, size, "real")
            for depth in config.layers:
                add("layers", policy, depth, experts, size)
            for width in config.experts:
                add("experts", policy, layers, width, size)
    return list(by_place.values())


def scheduler_cells(config: ml_collections.ConfigDict) -> list[SchedulerCell]:
    """All cells of the scheduler sweep.

    Raises:
      InputError: values that cannot be.
    """
    axes = (Axis("windows", number(1)), Axis("schedulers", made_by(scheduler_class)))
    windows, schedulers = values("config key ", config, axes)
    cells = []
    for name, w in config.workloads.items():
        if w.recorded_costs:
            machine = recorded_machine(w.recorded_costs, w.link, w.expert_bytes)
        else:
            machine = machine_of(config)
        sizes = (w.num_layers, w.num_experts, w.top_k, w.prompt_tokens, w.new_tokens, w.batch_size)
        if min(sizes) < 1 or w.top_k > w.num_experts:
            raise InputError(f"config key workloads.{name}: sizes below 1, or more experts per token than there are")
        work = Workload(name, machine, *sizes, config.cache_fraction)
        points = itertools.product(schedulers, windows)
        cells += [SchedulerCell(work, scheduler, window) for scheduler, window in points if window <= w.longest]
    return cells


def host_row(cell: HostCell, cost: Any) -> dict[str, Any]:
    """As written to results.jsonl."""
    return checked("scale", {"kind": "host", **dataclasses.asdict(cell), **dataclasses.asdict(cost)})


def scheduler_row(cell: SchedulerCell, seconds: float, one_batch: float) -> dict[str, Any]:
    """As written to results.jsonl. Args: one_batch: simulated seconds of running one."""
    work = cell.workload
    batches = -(-cell.window // work.batch_size)
    row = {
        "kind": "scheduler",
        "workload": work.name,
        "machine": work.machine.name,
        "num_layers": work.num_layers,
        "num_experts": work.num_experts,
        "batch_size": work.batch_size,
        "scheduler": cell.scheduler,
        "window": cell.window,
        "seconds": seconds,
        "seconds_per_sequence": seconds / cell.window,
        "scheduled_seconds": batches * one_batch,
        "share": seconds / (batches * one_batch),
    }
    return checked("scale", row)
