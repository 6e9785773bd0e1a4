"""When is an expert wanted again? Working sets and reuse distances per layer, and the hit rates that follow from them.

An expert's reuse distance is the number of other experts of its layer that were used since it was: a cache of C experts
per layer that evicts the least recent holds it if that is below C. So the distances foretell the hit rate of such a
cache at every size (Mattson and others, 1970, "Evaluation techniques for storage hierarchies"); the engine's own is
replayed beside it.
Axes: S steps, L MoE layers, E experts.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float64, Int

from expertflow_jax.offload.link import LinkSpec
from expertflow_jax.offload.store import ExpertSizes
from expertflow_jax.offload.variant import Variant, new_engine
from expertflow_jax.routing.trace import RoutingTrace
from expertflow_jax.simulation.costs import ComputeCosts, Line
from expertflow_jax.simulation.replay import ReplayStep, replay

WINDOWS = (1, 2, 4, 8, 16)  # layer-steps of a working set
_NO_TIME = Line(0.0, 0.0)
_COSTS = ComputeCosts(
    _NO_TIME, _NO_TIME, 0.0, _NO_TIME, _NO_TIME, _NO_TIME
)  # a demand cache decides alike at any speed


def batch_steps(trace: RoutingTrace, batch_size: int) -> list[ReplayStep]:
    """The steps of the trace's sequences in batches, in order: each batch's prefill, then its decode steps."""
    steps = []
    for first in range(0, len(trace), batch_size):
        batch = trace.select(slice(first, first + batch_size))
        steps.append(_step(batch.experts[batch.token_mask("prompt")], batch.num_experts, begins=True))
        for place in range(int((batch.lengths - batch.prompt_lengths).max())):
            position = batch.prompt_lengths + place
            alive = np.flatnonzero(position < batch.lengths)
            steps.append(_step(batch.experts[alive, position[alive]], batch.num_experts))
    return steps


def _step(experts_nxLxK: np.ndarray, num_experts: int, begins: bool = False) -> ReplayStep:
    tokens, layers, _ = experts_nxLxK.shape
    rows_LxE = np.zeros((layers, num_experts), np.int64)
    for layer in range(layers):
        chosen = experts_nxLxK[:, layer].reshape(-1)
        rows_LxE[layer] = np.bincount(chosen[chosen >= 0], minlength=num_experts)
    return ReplayStep(tokens, rows_LxE, begins=begins)


def working_sets(needed: Bool[np.ndarray, "S L E"]) -> dict[int, Float64[np.ndarray, " L"]]:
    """Mean number of distinct experts of a layer in so many steps on end; sizes beyond S are left out."""
    sizes = {}
    for window in WINDOWS:
        if window <= len(needed):
            seen = np.lib.stride_tricks.sliding_window_view(needed, window, axis=0)  # [S - window + 1, L, E, window]
            sizes[window] = seen.any(-1).sum(-1).mean(0)
    return sizes


def reuse_distances(needed: Bool[np.ndarray, "S L E"]) -> list[Int[np.ndarray, " uses"]]:
    """Of each layer the distances of all uses, in order; E for a first use. Among experts of one step the one with the
    higher index counts as used last, as the engine's caches have it."""
    _, layers, num_experts = needed.shape
    distances: list[list[np.ndarray]] = [[] for _ in range(layers)]
    last_LxE = np.full((layers, num_experts), -1, np.int64)
    for step, wanted_LxE in enumerate(needed):
        recency_LxE = last_LxE * num_experts + np.arange(num_experts)
        order_LxE = np.argsort(-recency_LxE, axis=-1)
        rank_LxE = np.empty_like(order_LxE)
        np.put_along_axis(rank_LxE, order_LxE, np.broadcast_to(np.arange(num_experts), order_LxE.shape), axis=-1)
        rank_LxE[last_LxE < 0] = num_experts
        for layer, wanted_E in enumerate(wanted_LxE):
            distances[layer].append(rank_LxE[layer, wanted_E])
        last_LxE[wanted_LxE] = step
    return [np.concatenate(of_layer) if of_layer else np.zeros(0, np.int64) for of_layer in distances]


@dataclasses.dataclass(frozen=True)
class HitRate:
    """A cache of so many experts per layer.

    Attributes:
      size: experts per layer.
      foretold: the hit rate that the reuse distances give, mean over all uses.
      replayed: the engine's with `cache_moe`, in the same steps.
    """

    size: int
    foretold: float
    replayed: float


def hit_rates(
    steps: Sequence[ReplayStep], distances: Sequence[Int[np.ndarray, " uses"]], sizes: Sequence[int]
) -> list[HitRate]:
    """Hit rates foretold and replayed, at each size below E."""
    layers, num_experts = steps[0].rows.shape
    every = np.concatenate(list(distances))
    return [
        HitRate(size, float((every < size).mean()), _replayed(steps, size * layers))
        for size in sizes
        if size < num_experts
    ]


def _replayed(steps: Sequence[ReplayStep], slots: int) -> float:
    layers, num_experts = steps[0].rows.shape
    with new_engine(ExpertSizes(layers, num_experts, 1), Variant.of("cache_moe"), slots, LinkSpec(1.0, 0.0)) as engine:
        return float(replay(engine, steps, _COSTS)["hit_rate"])
