"""Replays a window of batches in blocks of M on the virtual clock, and says how far that is from what could be.

Axes: N steps of the window in order of batches, L MoE layers, E experts, M batches of a block.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from expertflow_jax.offload.budget import MemoryPlan
from expertflow_jax.offload.engine import ExpertCacheEngine
from expertflow_jax.offload.store import ExpertSizes
from expertflow_jax.offload.variant import Variant, new_engine
from expertflow_jax.simulation.costs import ComputeCosts
from expertflow_jax.simulation.limits import Limit, limit_of, super_steps
from expertflow_jax.simulation.machines import Machine
from expertflow_jax.simulation.replay import ReplayStep, replay_step, true_horizons
from expertflow_jax.workloads.recorded import RecordedStep, in_blocks


@dataclasses.dataclass(frozen=True)
class Outcome:
    """Simulated.

    Attributes:
      stats: of the engine.
      tokens: processed in the window.
      resident_seconds: its compute alone.
      first_token_seconds: from the beginning of a block to its answers' first tokens, mean over blocks.
      limit, best_order: of the order that was run, and of the whole window as one block.
    """

    stats: dict[str, Any]
    tokens: int
    resident_seconds: float
    first_token_seconds: float
    limit: Limit
    best_order: Limit


def measure(
    batches: Sequence[Sequence[RecordedStep]], variant: Variant, batches_per_block: int, machine: Machine, slots: int
) -> Outcome:
    """Runs the window once from a cache that holds experts in index order."""
    steps = [recorded.step for batch in batches for recorded in batch]
    layers, experts = steps[0].rows.shape
    top_k = round(steps[0].rows[0].sum() / steps[0].tokens)
    blocks = in_blocks(batches, batches_per_block, top_k=top_k)
    if variant.forecast == "truth":
        blocks = true_horizons(blocks, len(blocks))
    with new_engine(ExpertSizes(layers, experts, machine.expert_bytes), variant, slots, machine.link) as engine:
        inside = engine.pool.key_of[engine.pool.key_of >= 0].tolist()
        firsts = _replay(engine, blocks, machine.costs)
        stats = engine.stats()
        slots = engine.num_slots
    needed_NxLxE = np.stack([step.needed for step in steps])
    resident = resident_seconds(steps, machine.costs)

    limits = [
        limit_of(
            super_steps(needed_NxLxE, len(batches), size),
            slots,
            inside,
            resident_seconds=resident,
            expert_bytes=machine.expert_bytes,
            link=machine.link,
        )
        for size in (batches_per_block, len(batches))
    ]
    tokens = sum(step.tokens for step in steps)
    return Outcome(stats, tokens, resident, float(np.mean(firsts)), *limits)


def _replay(engine: ExpertCacheEngine, blocks: Sequence[ReplayStep], costs: ComputeCosts) -> list[float]:
    """Returns how long the first super-step of each block took."""
    firsts = []
    for step in blocks:
        begin = engine.clock.now()
        replay_step(engine, step, costs)
        if step.begins:
            firsts.append(engine.clock.now() - begin)
    return firsts


def resident_seconds(steps: Sequence[ReplayStep], costs: ComputeCosts) -> float:
    """Compute of all batches' steps with every expert there; the order does not matter."""
    seconds = 0.0
    for step in steps:
        for rows_E in step.rows:
            seconds += costs.attend_seconds(step.tokens) + costs.experts_seconds(rows_E[rows_E > 0].tolist())
    return seconds


def figures(outcome: Outcome, plan: MemoryPlan) -> dict[str, Any]:
    """The values of a row that come of a run."""
    stats, tokens = outcome.stats, outcome.tokens
    wall = stats["wall_seconds"]
    seconds = ("wall_seconds", "compute_seconds", "stall_seconds", "predictor_seconds", "link_seconds")
    counts = ("bytes_transferred", "prefetches", "wasted_prefetches", "hits", "late", "misses", "corrections")
    return {
        "cache_fraction": plan.cache_fraction,
        "slots": plan.slots,
        "memory_budget_bytes": plan.total_bytes,
        "expert_bytes": plan.expert_bytes,
        "tokens": tokens,
        "tokens_per_second": tokens / wall,
        "limit_tokens_per_second": tokens / outcome.limit.seconds,
        "fraction_of_limit": outcome.limit.seconds / wall,
        "best_order_tokens_per_second": tokens / outcome.best_order.seconds,
        "fraction_of_resident": outcome.resident_seconds / wall,
        "first_token_seconds": outcome.first_token_seconds,
        **{key: stats[key] for key in seconds},
        **{key: round(stats[key]) for key in counts},
        "least_bytes": outcome.limit.least_bytes,
        "best_order_bytes": outcome.best_order.least_bytes,
        "hit_rate": stats["hit_rate"],
        "link": stats["link"],
        "clock": stats["clock"],
    }
