"""Capacity per batch, as in training Switch Transformers and GShard: of a batch's tokens an expert takes so many.

    C = ceil(factor * N * K / E),   N the tokens of the step that count

First choices take their places before second ones, in the order of tokens (2006.16668, algorithm 1; 2101.03961, section
2.2 with K = 1); beyond C a choice does not run, and the token's other experts keep their weights. So what a token loses
depends on which tokens stand beside it: here a token scheduler changes answers. The capacity of Switch's released
routers is counted in each sequence by itself and belongs to the model (`models/switch_transformers.py`).
Axes: N tokens, K top-k, E experts.
"""

import math

import numpy as np

from expertflow_jax.offload.misses.base import Decision, LayerStep, MissPolicy, number_option


class Capacity(MissPolicy):
    """Drops what is beyond an expert's share of the batch, whether or not it has arrived; waits for the rest."""

    name = "capacity"
    fetches_dropped = False

    def __init__(self, factor: float = 1.25, phase: str = "both", tokens: str = "both", layers: str = "all"):
        """
        Args:
          factor: of the even share of an expert; from E / K on nothing is dropped.

        Raises:
          InputError: not a number from 0 up, or see `MissPolicy`.
        """
        super().__init__(phase, tokens, layers)
        self.factor = number_option(self.name, "factor", factor)

    def decide(self, step: LayerStep) -> Decision:
        counted_NxK = (step.expert_ids >= 0) & self.allowed(step)[:, None]
        tokens = int(counted_NxK.any(axis=1).sum())
        top_k, experts = step.expert_ids.shape[1], len(step.usable)
        beyond_NxK = counted_NxK & (_places(step.expert_ids, counted_NxK) >= self._share(tokens, top_k, experts))
        if not beyond_NxK.any():
            return step.as_chosen()
        ids = np.where(beyond_NxK, -1, step.expert_ids).astype(step.expert_ids.dtype)
        return Decision(ids, np.where(beyond_NxK, 0, step.weights).astype(step.weights.dtype))

    def _share(self, tokens: int, top_k: int, experts: int) -> int:
        """C."""
        return math.ceil(self.factor * tokens * top_k / experts)


def _places(ids_NxK: np.ndarray, counted_NxK: np.ndarray) -> np.ndarray:
    """How many counted choices of the same expert go before each: int [N, K]."""
    order = ids_NxK.T.reshape(-1)  # first choices of all tokens, then second ones
    counted = counted_NxK.T.reshape(-1)
    places = np.zeros(order.size, np.int64)
    by_expert = np.flatnonzero(counted)[np.argsort(order[counted], kind="stable")]
    runs = order[by_expert]
    starts = np.flatnonzero(np.r_[True, runs[1:] != runs[:-1]]) if len(runs) else np.zeros(0, np.int64)
    lengths = np.diff(np.r_[starts, len(runs)])
    places[by_expert] = np.arange(len(runs)) - np.repeat(starts, lengths)
    return places.reshape(ids_NxK.shape[::-1]).T
