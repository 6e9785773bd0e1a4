"""Set-union growth: a batch starts from the oldest waiting sequence and takes what adds fewest experts.

The classic greedy for batching by set union, on forecasts instead of sets: with `absent` the probability that no member
uses an expert, a candidate adds sum over layers and experts of absent * p, one matrix-vector product for all candidates
at once. Starting from the oldest keeps order of arrival wherever routes do not matter.
Axes: W waiting sequences, L MoE layers, E experts, F = L * E, C candidates.
"""

import numpy as np
from jaxtyping import Float32, Int

from expertflow_jax.scheduling.base import Scheduler


class GreedyScheduler(Scheduler):
    """Grows batches by the least expected increase in distinct experts."""

    name = "greedy"
    longest = 1024

    def _form(self, signatures, sizes, rng):
        points_WxF = signatures.reshape(len(signatures), -1)
        waiting = np.arange(len(points_WxF))
        batches = []
        for size in sizes:
            batch = _grow(points_WxF, waiting, int(size))
            waiting = np.setdiff1d(waiting, batch, assume_unique=True)
            batches.append(batch)
        return batches


def _grow(points_WxF: Float32[np.ndarray, "W F"], waiting: Int[np.ndarray, " n"], size: int) -> Int[np.ndarray, " B"]:
    """One batch of `size` of the `waiting` ranks, sorted, with `waiting[0]`."""
    members, candidates = [waiting[0]], waiting[1:]
    absent = 1.0 - points_WxF[waiting[0]]
    candidates_CxF = points_WxF[candidates]
    free = np.ones(len(candidates), bool)
    while len(members) < size:
        best = int(np.argmin(np.where(free, candidates_CxF @ absent, np.inf)))
        free[best] = False
        members.append(candidates[best])
        absent = absent * (1.0 - candidates_CxF[best])
    return np.sort(members)
