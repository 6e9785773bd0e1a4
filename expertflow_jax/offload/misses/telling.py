"""What follows from a miss policy's decision: what runs now, what later, and what the engine is told.

Axes: N tokens, K top-k, E experts.
"""

import numpy as np
from jaxtyping import Bool, Int

from expertflow_jax.offload.engine import ExpertCacheEngine
from expertflow_jax.offload.misses.base import Decision, Ids, LayerStep, MissPolicy


def split(ids: Ids, deferred: Bool[np.ndarray, " E"] | None) -> tuple[Ids, Ids | None]:
    """The choices that run now and those that are deferred, -1 in the place of the others; None if none is."""
    if deferred is None:
        return ids, None
    waits = (ids >= 0) & deferred[np.maximum(ids, 0)]
    if not waits.any():
        return ids, None
    return np.where(waits, -1, ids), np.where(waits, ids, -1)


def tell(
    engine: ExpertCacheEngine,
    policy: MissPolicy,
    step: LayerStep,
    decision: Decision,
    counts_E: Int[np.ndarray, " E"],
    wanted_E: Bool[np.ndarray, " E"],
) -> None:
    """Has the engine count a layer-step that is not served as chosen; its `rounds` come next.

    Args:
      counts_E: tokens that the router sends to each expert.
      wanted_E: experts that run now.
    """
    later_E = (counts_E > 0) & ~wanted_E & policy.fetches_dropped
    here_E = step.usable
    if decision.quantized is not None:
        here_E = here_E | (decision.quantized & engine.copied(step.layer))
    waits = bool((wanted_E & ~here_E).any())
    asked, later = (np.flatnonzero(experts).astype(np.int32) for experts in (counts_E, later_E))
    engine.note_lossy(step.layer, asked, here_E, counts_E, later, waits)
