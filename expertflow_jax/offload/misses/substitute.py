"""The other naive control: whatever has not arrived gives way to what has."""

import numpy as np

from expertflow_jax.offload.misses.base import MissPolicy, arrived, rescale


class Substitute(MissPolicy):
    """A missing expert gives way to the arrived one that the router likes best and the token does not use
    yet.

    Missing ones are replaced in the order of K; ties in probability go to the lowest expert; where no expert
    is left the choice is dropped. All weights of such a token are the router's probabilities of what runs,
    rescaled.
    """

    name = "substitute"

    def resolve(self, expert_ids, weights, router_probs, usable):
        chosen = expert_ids >= 0
        here = arrived(expert_ids, usable)
        changed = (chosen & ~here).any(axis=1)
        if not changed.any():
            return expert_ids, weights
        tokens = np.flatnonzero(changed)
        ids = np.where(here, expert_ids, -1)[tokens]
        missing = (chosen & ~here)[tokens]
        free = np.where(usable, router_probs[tokens], -1.0).astype(np.float32)
        rows, places = np.nonzero(ids >= 0)
        free[rows, ids[rows, places]] = -1.0
        every = np.arange(len(tokens))
        for k in range(expert_ids.shape[1]):
            best = free.argmax(axis=1)
            replaced = missing[:, k] & (free[every, best] >= 0)
            ids[replaced, k] = best[replaced]
            free[every[replaced], best[replaced]] = -1.0
        new_ids = expert_ids.copy()
        new_ids[tokens] = ids
        runs = (new_ids >= 0) & changed[:, None]
        parts = np.take_along_axis(router_probs, np.maximum(new_ids, 0), axis=1)
        return new_ids, rescale(weights, np.where(runs, parts, 0), changed)
