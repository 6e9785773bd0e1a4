"""What a layer does about experts that have not arrived: wait (lossless), drop them, or substitute others.
Pure NumPy.

Weights follow the models' own rule that they come from the router's probabilities of the experts that run and
keep the token's total: cache-conditional routing (2412.00099) changes only the choice and leaves weights to
the router; BuddyMoE (2511.10054) runs a cached expert in the place of the missing one. So a token whose
experts all arrived is left untouched bit for bit; any other one has its weights rescaled to its original
total over what runs (for models with renormalised top-k that total is 1), and a token left with nothing keeps
only its residual stream.
Axes: N tokens, K top-k, E experts.
"""

from typing import Any

import numpy as np

from expertflow_jax import names


class MissPolicy:
    """How misses are met. To add one, subclass this; it can be named as "package.module:Class" at once.

    Attributes:
      name: as in configs and results.
      lossless: whether outputs equal the resident run's bit for bit.
    """

    name = ""
    lossless = False

    def resolve(
        self, expert_ids: np.ndarray, weights: np.ndarray, router_probs: np.ndarray, usable: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """The experts to run instead.

        Args:
          expert_ids: int32 [N, K], the router's choice, -1 where there is none.
          weights: float32 [N, K].
          router_probs: float32 [N, E].
          usable: bool [E], experts that have arrived.

        Returns:
          (expert_ids, weights) of the same shapes; ids of experts that do not run are -1 with weight 0.
        """
        raise NotImplementedError(f"{type(self).__name__} does not say what runs instead")


def _arrived(expert_ids: np.ndarray, usable: np.ndarray) -> np.ndarray:
    return (expert_ids >= 0) & usable[np.maximum(expert_ids, 0)]


def _rescale(weights: np.ndarray, parts: np.ndarray, changed: np.ndarray) -> np.ndarray:
    """`weights` where not `changed` (bool [N]); elsewhere `parts` scaled to the total of `weights`."""
    total = weights.sum(axis=1, keepdims=True, dtype=np.float32)
    sums = parts.sum(axis=1, keepdims=True, dtype=np.float32)
    scale = np.divide(total, sums, out=np.zeros_like(total), where=sums > 0)
    return np.where(changed[:, None], parts * scale, weights).astype(weights.dtype)


class Wait(MissPolicy):
    """Lossless: compute waits for every expert that the router chose."""

    name = "wait"
    lossless = True

    def resolve(
        self, expert_ids: np.ndarray, weights: np.ndarray, router_probs: np.ndarray, usable: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        return expert_ids, weights


class Drop(MissPolicy):
    """Experts that have not arrived do not run; the others of the token take over their weight."""

    name = "drop"
    lossless = False

    def resolve(
        self, expert_ids: np.ndarray, weights: np.ndarray, router_probs: np.ndarray, usable: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        here = _arrived(expert_ids, usable)
        changed = ((expert_ids >= 0) & ~here).any(axis=1)
        ids = np.where(here, expert_ids, -1).astype(expert_ids.dtype)
        return ids, _rescale(weights, np.where(here, weights, 0), changed)


class Substitute(MissPolicy):
    """A missing expert gives way to the arrived one that the router likes best and the token does not use
    yet.

    Missing ones are replaced in the order of K; ties in probability go to the lowest expert; where no expert
    is left the choice is dropped. All weights of such a token are the router's probabilities of what runs,
    rescaled.
    """

    name = "substitute"
    lossless = False

    def resolve(
        self, expert_ids: np.ndarray, weights: np.ndarray, router_probs: np.ndarray, usable: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        chosen = expert_ids >= 0
        here = _arrived(expert_ids, usable)
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
        return new_ids, _rescale(weights, np.where(runs, parts, 0), changed)


MISS_POLICIES: dict[str, type[MissPolicy]] = {policy.name: policy for policy in (Wait, Drop, Substitute)}


def make_miss_policy(policy: str | type[MissPolicy] | MissPolicy, **options: Any) -> MissPolicy:
    """A miss policy by name of `MISS_POLICIES`, by "package.module:Class", of a class, or an instance, passed on.

    Args:
      options: keyword arguments of the class; a name may carry them too, as in "my_module:DropWeak(below=0.5)".

    Raises:
      InputError: there is no such miss policy or module, it is no `MissPolicy`, or it does not take these options.
    """
    return names.make("miss policy", policy, MISS_POLICIES, MissPolicy, **options)
