"""Host bookkeeping of the cache engine: the real engine with a link that copies nothing and a computation of nothing.

Decode steps of made-up routing run through the engine on a virtual clock, so that as many experts travel as on the
stated machine, while the CPU time of the one thread is measured: what remains is counting, choosing and booking, the
virtual link's included. Under the real clock the link's choices happen on a thread of its own; there, what the
computing thread spends inside the engine is measured, waiting for its lock included.
Axes: L MoE layers, E experts, K top-k, B sequences.
"""

import dataclasses
import time

import numpy as np

from expertflow_jax.offload.clock import RealClock
from expertflow_jax.offload.engine import ExpertCacheEngine
from expertflow_jax.offload.store import ExpertSizes
from expertflow_jax.offload.variant import Variant, new_engine
from expertflow_jax.simulation.machines import Machine
from expertflow_jax.simulation.replay import ReplayStep
from expertflow_jax.simulation.synthetic import noisy_horizons, synthetic_steps

SKILL = 2.5  # of the made-up forecast, about that of a trained predictor
HORIZON = 3  # steps that it looks ahead: the running one, the next token's, the queue's


@dataclasses.dataclass(frozen=True)
class HostCell:
    """What is measured.

    Attributes:
      sweep: which plot it belongs to.
      clock: "virtual" or "real".
    """

    sweep: str
    policy: str
    num_layers: int
    num_experts: int
    top_k: int
    batch_size: int
    cache_fraction: float
    clock: str = "virtual"

    def label(self) -> str:
        size = f"{self.num_layers} layers x {self.num_experts} experts"
        return f"{self.policy}, {size}, batch {self.batch_size}, {self.clock} clock"


@dataclasses.dataclass(frozen=True)
class HostCost:
    """Per layer-step unless it says otherwise.

    Attributes:
      host_us, host_us_median: microseconds of CPU time (wall time under the real clock): least and median of repeats.
      asked, transfers, rounds: experts asked for, experts sent for, rounds of compute.
      tokens_per_second: simulated, None under the real clock.
      tokens_per_second_with_host: the same if the host's time came on top, none of it hidden.
    """

    host_us: float
    host_us_median: float
    asked: float
    transfers: float
    rounds: float
    hit_rate: float
    tokens_per_second: float | None
    tokens_per_second_with_host: float | None


def measure_host(cell: HostCell, machine: Machine, steps: int, repeats: int, seed: int) -> HostCost:
    """Runs `steps` decode steps once to warm up and then `repeats` times."""
    trace = synthetic_steps(
        seed,
        num_layers=cell.num_layers,
        num_experts=cell.num_experts,
        top_k=cell.top_k,
        batches=1,
        batch_size=cell.batch_size,
        prompt_tokens=0,
        decode_steps=steps,
    )
    trace = noisy_horizons(trace, seed + 1, SKILL, look_ahead=HORIZON)
    asks = [[np.flatnonzero(row).astype(np.int32) for row in step.rows] for step in trace]
    sizes = ExpertSizes(cell.num_layers, cell.num_experts, machine.expert_bytes)
    slots = max(1, int(cell.cache_fraction * cell.num_layers * cell.num_experts))
    real = cell.clock == "real"
    variant, clock = Variant.of(cell.policy), RealClock() if real else None
    with new_engine(sizes, variant, slots, machine.link, clock) as engine:
        spent, rounds = [], 0
        for repeat in range(repeats + 1):
            if repeat == 1:
                engine.reset_stats()
                rounds = 0
            booked, begin = engine.clock.totals["host"], time.thread_time()
            for step, experts in zip(trace, asks, strict=True):
                rounds += _step(engine, step, experts, machine, real)
            taken = engine.clock.totals["host"] - booked if real else time.thread_time() - begin
            spent.append(taken / (steps * cell.num_layers))
        stats = engine.stats()
    layer_steps = stats["layer_steps"]
    asked = stats["hits"] + stats["late"] + stats["misses"]
    tokens, seconds = repeats * steps * cell.batch_size, stats["wall_seconds"]
    timed = spent[1:]
    return HostCost(
        host_us=min(timed) * 1e6,
        host_us_median=float(np.median(timed)) * 1e6,
        asked=asked / layer_steps,
        transfers=(stats["prefetches"] + stats["urgent_transfers"]) / layer_steps,
        rounds=rounds / layer_steps,
        hit_rate=stats["hit_rate"],
        tokens_per_second=None if real else tokens / seconds,
        tokens_per_second_with_host=None if real else tokens / (seconds + min(timed) * layer_steps),
    )


def _step(engine: ExpertCacheEngine, step: ReplayStep, experts: list[np.ndarray], machine: Machine, real: bool) -> int:
    """One step; returns its rounds. Under the real clock nothing is computed, and the link has real time alone."""
    costs, clock, rounds = machine.costs, engine.clock, 0
    attend = costs.attend_seconds(step.tokens)
    engine.begin_step(step.horizon if engine.forecasts else None)
    for layer, asked in enumerate(experts):
        if not real:
            clock.spend(attend, "compute")
        for group, _ in engine.rounds(layer, asked):
            rounds += 1
            if not real:
                clock.spend(costs.per_expert * len(group), "compute")
    engine.end_step()
    return rounds
