"""The naive control: whatever has not arrived does not run."""

import numpy as np

from expertflow_jax.offload.misses.base import MissPolicy, arrived, rescale


class Drop(MissPolicy):
    """Experts that have not arrived do not run; the others of the token take over their weight."""

    name = "drop"

    def resolve(self, expert_ids, weights, router_probs, usable):
        here = arrived(expert_ids, usable)
        changed = ((expert_ids >= 0) & ~here).any(axis=1)
        ids = np.where(here, expert_ids, -1).astype(expert_ids.dtype)
        return ids, rescale(weights, np.where(here, weights, 0), changed)
