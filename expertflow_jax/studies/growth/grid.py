"""The cells of a scale config, checked before any work, and the rows that they give. See configs/scale_cpu.py.

Rows are JSON lines of two kinds, `host` and `scheduler`; microseconds and seconds are CPU time unless named simulated.
"""

import dataclasses
from typing import Any

import ml_collections

from expertflow_jax.errors import InputError
from expertflow_jax.offload.policies import make_policy
from expertflow_jax.scheduling import make_scheduler
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
    for key, least in (("layers", 1), ("experts", top_k), ("batch_sizes", 1)):
        values = config[key]
        if not values or min(values) < least:
            raise InputError(f"config key {key}: {tuple(values)}: wants numbers of at least {least}")
    if not 0 < config.cache_fraction <= 1:
        raise InputError(f"config key cache_fraction: {config.cache_fraction} is not above 0 and at most 1")
    for key in ("steps", "repeats"):
        if config[key] < 1:
            raise InputError(f"config key {key}: {config[key]} is below 1")
    for policy in config.policies:
        make_policy(policy)
    found: dict[tuple, HostCell] = {}

    def add(sweep: str, policy: str, layers: int, experts: int, size: int, clock: str = "virtual", cache=None) -> None:
        cell = HostCell(sweep, policy, layers, experts, top_k, size, cache or config.cache_fraction, clock)
        found.setdefault(dataclasses.astuple(cell), cell)

    for policy in config.policies:
        for size in config.batch_sizes:
            add("target", policy, layers, experts, size, cache=1.0)  # nothing travels
            add("target", policy, layers, experts, size)
            add("target", policy, layers, experts, size, "real")
            for number in config.layers:
                add("layers", policy, number, experts, size)
            for number in config.experts:
                add("experts", policy, layers, number, size)
    return list(found.values())


def scheduler_cells(config: ml_collections.ConfigDict) -> list[SchedulerCell]:
    """All cells of the scheduler sweep.

    Raises:
      InputError: values that cannot be.
    """
    if min(config.windows, default=1) < 1:
        raise InputError(f"config key windows: {tuple(config.windows)}: wants numbers of at least 1")
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
        for scheduler in config.schedulers:
            make_scheduler(scheduler, batch_size=w.batch_size)
            cells += [SchedulerCell(work, scheduler, window) for window in config.windows if window <= w.longest]
    return cells


def host_row(cell: HostCell, cost: Any) -> dict[str, Any]:
    """As written to results.jsonl."""
    return {"kind": "host", **dataclasses.asdict(cell), **dataclasses.asdict(cost)}


def scheduler_row(cell: SchedulerCell, seconds: float, one_batch: float) -> dict[str, Any]:
    """As written to results.jsonl. Args: one_batch: simulated seconds of running one."""
    work = cell.workload
    batches = -(-cell.window // work.batch_size)
    return {
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
