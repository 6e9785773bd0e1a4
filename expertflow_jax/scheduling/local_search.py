"""Swap improvement of greedy and k-means batches: exchange two sequences while that saves expected experts.

Written with absence probabilities q = 1 - p, a schedule's cost is a constant less the sum over batches, layers and
experts of the product of its members' q. With R[i] the product over i's batch without i (`rest_WxF`), the value of j in
i's place is R[i] . q[j] (`value_WxW`): one matrix product prices every swap, and a swap changes only the rows and
columns of two batches.
Axes: W waiting sequences, L MoE layers, E experts, F = L * E, B sequences of a batch.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float32, Int

from expertflow_jax.scheduling.base import Scheduler
from expertflow_jax.scheduling.greedy import GreedyScheduler
from expertflow_jax.scheduling.kmeans import KMeansScheduler
from expertflow_jax.scheduling.objective import schedule_cost


class LocalSearchScheduler(Scheduler):
    """The better of greedy and k-means batches, each improved by swaps until none helps."""

    name = "local_search"
    longest = 256  # prices are quadratic in it

    def _form(self, signatures, sizes, rng):
        absent_WxF = 1.0 - signatures.reshape(len(signatures), -1)
        best: list[np.ndarray] = []
        lowest = np.inf
        for start in (GreedyScheduler, KMeansScheduler):
            batches = _improve(absent_WxF, start(self.batch_size)._form(signatures, sizes, rng))
            if (cost := schedule_cost(signatures, batches)) < lowest:
                best, lowest = batches, cost
        return best


def _improve(absent_WxF: Float32[np.ndarray, "W F"], batches: Sequence[np.ndarray]) -> list[Int[np.ndarray, " B"]]:
    """Batches of the same sizes with fewer expected experts. `absent_WxF` is 1 - p; below, W is in order of batches."""
    members = np.concatenate(batches)
    ends = np.cumsum([len(batch) for batch in batches])
    batch_of = np.repeat(np.arange(len(batches)), [len(batch) for batch in batches])
    q_WxF = absent_WxF[members]
    rest_WxF = np.concatenate([_product_of_others(part_BxF) for part_BxF in np.split(q_WxF, ends[:-1])])
    value_WxW = rest_WxF @ q_WxF.T
    tolerance = 1e-6 * q_WxF.shape[1]  # float32 sums: a smaller gain may be rounding, and could be swapped back
    touched, gain_WxW = np.arange(len(members)), np.empty_like(value_WxW)
    for _ in range(8 * len(members)):
        present = value_WxW.diagonal()  # of every sequence in its present place
        same_batch = batch_of[touched, None] == batch_of[None, :]
        rows, columns = value_WxW[touched], value_WxW[:, touched]
        gain_WxW[touched] = np.where(same_batch, -np.inf, rows + columns.T - present[touched, None] - present[None, :])
        gain_WxW[:, touched] = np.where(
            same_batch.T, -np.inf, columns + rows.T - present[:, None] - present[None, touched]
        )
        one, other = divmod(int(gain_WxW.argmax()), len(members))
        if gain_WxW[one, other] <= tolerance:
            break
        pair = np.array([one, other])
        members[pair], q_WxF[pair] = members[pair[::-1]], q_WxF[pair[::-1]]
        touched = np.flatnonzero((batch_of == batch_of[one]) | (batch_of == batch_of[other]))
        for batch in (batch_of[one], batch_of[other]):
            rest_WxF[batch_of == batch] = _product_of_others(q_WxF[batch_of == batch])
        value_WxW[touched] = rest_WxF[touched] @ q_WxF.T
        value_WxW[:, pair] = rest_WxF @ q_WxF[pair].T
    return [np.sort(batch) for batch in np.split(members, ends[:-1])]


def _product_of_others(q_BxF: Float32[np.ndarray, "B F"]) -> Float32[np.ndarray, "B F"]:
    """For each row the product of the other rows (without dividing: rows hold zeros)."""
    before_BxF = np.ones_like(q_BxF)
    before_BxF[1:] = np.cumprod(q_BxF[:-1], axis=0)
    after_BxF = np.ones_like(q_BxF)
    after_BxF[:-1] = np.cumprod(q_BxF[:0:-1], axis=0)[::-1]
    return before_BxF * after_BxF
