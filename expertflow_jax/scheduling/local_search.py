"""Swap improvement of greedy and k-means batches: exchange two sequences while that saves expected experts.

Written with absence probabilities q = 1 - p, a schedule's cost is a constant less the sum over batches,
layers and experts of the product of its members' q. With R[i] the product over i's batch without i, the
value of j in i's place is R[i] . q[j]: one matrix product prices every swap, and a swap changes only the
rows and columns of two batches.
Axes: W waiting sequences, L MoE layers, E experts, B batch.
"""

from collections.abc import Sequence

import numpy as np

from expertflow_jax.scheduling.base import Scheduler
from expertflow_jax.scheduling.greedy import GreedyScheduler
from expertflow_jax.scheduling.kmeans import KMeansScheduler
from expertflow_jax.scheduling.objective import schedule_cost


class LocalSearchScheduler(Scheduler):
    """The better of greedy and k-means batches, each improved by swaps until none helps."""

    name = "local_search"
    longest = 256  # prices are quadratic in it

    def _form(self, signatures, sizes, rng):
        absent = 1.0 - signatures.reshape(len(signatures), -1)
        best: list[np.ndarray] = []
        lowest = np.inf
        for start in (GreedyScheduler, KMeansScheduler):
            batches = _improve(absent, start(self.batch_size)._form(signatures, sizes, rng))
            if (cost := schedule_cost(signatures, batches)) < lowest:
                best, lowest = batches, cost
        return best


def _improve(absent: np.ndarray, batches: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Batches of the same sizes with fewer expected experts. Args: absent: float32 [W, L * E], 1 - p."""
    members = np.concatenate(batches)
    ends = np.cumsum([len(batch) for batch in batches])
    home = np.repeat(np.arange(len(batches)), [len(batch) for batch in batches])
    q = absent[members]
    others = np.concatenate([_product_of_others(part) for part in np.split(q, ends[:-1])])
    value = others @ q.T
    tolerance = 1e-6 * q.shape[1]  # float32 sums: a smaller gain may be rounding, and could be swapped back
    touched, gain = np.arange(len(members)), np.empty_like(value)
    for _ in range(8 * len(members)):
        own = value.diagonal()
        same_batch = home[touched, None] == home[None, :]
        rows, columns = value[touched], value[:, touched]
        gain[touched] = np.where(same_batch, -np.inf, rows + columns.T - own[touched, None] - own[None, :])
        gain[:, touched] = np.where(same_batch.T, -np.inf, columns + rows.T - own[:, None] - own[None, touched])
        one, other = divmod(int(gain.argmax()), len(members))
        if gain[one, other] <= tolerance:
            break
        pair = np.array([one, other])
        members[pair], q[pair] = members[pair[::-1]], q[pair[::-1]]
        touched = np.flatnonzero((home == home[one]) | (home == home[other]))
        for batch in (home[one], home[other]):
            others[home == batch] = _product_of_others(q[home == batch])
        value[touched] = others[touched] @ q.T
        value[:, pair] = others @ q[pair].T
    return [np.sort(batch) for batch in np.split(members, ends[:-1])]


def _product_of_others(q: np.ndarray) -> np.ndarray:
    """[B, n] -> [B, n]: for each row the product of the other rows (without dividing: rows hold zeros)."""
    before = np.ones_like(q)
    before[1:] = np.cumprod(q[:-1], axis=0)
    after = np.ones_like(q)
    after[:-1] = np.cumprod(q[:0:-1], axis=0)[::-1]
    return before * after
