"""MoE-Infinity (2401.14361, sections 4 and 5): the routing of earlier requests, matched, says what comes.

An *activation matrix* counts the tokens that a request has sent to each expert, [L, E]. A collection holds those of 120
earlier requests; a new one replaces, when it is full, the most similar. At every layer l of a step the running
request's matrix is compared with the collection: the cosine of each layer's row, averaged over the layers seen so far.
The most similar matrix, its rows normalised, is the prediction p. Then
    an absent expert e of a coming layer i travels by   p[i, e] * (1 - (i - l) / L), the largest first,
    and room is made by the resident with the least     (p[i, e] + EPSILON) * (1 - i / L),
so that early layers, for which there is least time, stay. What stands in the queue of prefetches is safe from
eviction, as long as anything else is there. Layers that have passed are dropped from the queue.
(The paper divides the second score by the request's tokens, the same for all experts: that changes no order.)

The released code (EfficientMoE/MoE-Infinity at d617801) differs: `find_most_similar` blanks the rows up to layer l of
the *collection*, so that what a request has just shown counts for nothing and in its first step, a prompt, all entries
look alike; a full collection loses its least used entry; and the engine evicts as `lfu`.
Liberties: a batch is a request, as its sequences run together; a request is learnt when the next one begins; matching
takes no time on the virtual clock (the paper measures 21 microseconds).
"""

from pathlib import Path

import numpy as np

from expertflow_jax.errors import InputError
from expertflow_jax.offload.policies.base import CachePolicy
from expertflow_jax.offload.slots import SlotPool
from expertflow_jax.routing.trace import RoutingTrace

EPSILON = 1e-8


def activation_matrices(trace: RoutingTrace, num_experts: int) -> np.ndarray:
    """Tokens of each recorded sequence that chose each expert: float64 [N, L, E]."""
    layers = trace.num_layers
    matrices = np.zeros((len(trace), layers, num_experts))
    for matrix_LE, paths_TLK in zip(matrices, trace.experts, strict=True):
        for layer in range(layers):
            ids = paths_TLK[:, layer].reshape(-1)
            matrix_LE[layer] = np.bincount(ids[ids >= 0], minlength=num_experts)
    return matrices


def row_cosines(collection: np.ndarray, row: np.ndarray) -> np.ndarray:
    """Cosine of `row` [E] with every row of `collection` [n, E], 0 where either is zero: float64 [n]."""
    norms_n = np.linalg.norm(collection, axis=1) * np.linalg.norm(row)
    return np.divide(collection @ row, norms_n, out=np.zeros(len(collection)), where=norms_n > 0)


class MoEInfinity(CachePolicy):
    """Shared slots; prefetch and eviction by the activation matrix of the most similar earlier request."""

    name = "moe_infinity"
    prefetches = True

    def __init__(self, traces: str = "", capacity: int = 120):
        """
        Args:
          traces: file of a `RoutingTrace` whose sequences the collection begins with; empty: all is learnt while
            running.
          capacity: matrices that the collection holds.

        Raises:
          InputError: the file cannot be read, or the capacity is below one.
        """
        if capacity < 1:
            raise InputError(f"policy moe_infinity: capacity {capacity} is below 1")
        self._capacity = capacity
        self._recorded = RoutingTrace.load(Path(traces)) if traces else None

    def attach(self, slots: SlotPool) -> None:
        super().attach(slots)
        self.collection = np.zeros((0, self.num_layers, self.num_experts))  # activation matrices [n, L, E]
        if self._recorded is not None:
            if (self._recorded.num_layers, self._recorded.num_experts) != (self.num_layers, self.num_experts):
                raise InputError(
                    f"policy moe_infinity: traces of {self._recorded.num_layers} layers of "
                    f"{self._recorded.num_experts} experts do not fit a model of {self.num_layers} layers of "
                    f"{self.num_experts}; record them with this model"
                )
            self.collection = activation_matrices(self._recorded, self.num_experts)[: self._capacity]
        self._matrix = np.zeros((self.num_layers, self.num_experts))  # of the running request
        self._forget_request()

    def _forget_request(self) -> None:
        self._matrix[:] = 0
        self._cosine_nL = np.zeros((len(self.collection), self.num_layers))
        self.predicted = np.zeros((self.num_layers, self.num_experts))  # p
        self._look_from(self.num_layers)

    def begin_batch(self) -> None:
        if self._matrix.any():
            self._learn()
        self._forget_request()

    def _learn(self) -> None:
        if len(self.collection) < self._capacity:
            self.collection = np.concatenate([self.collection, self._matrix[None]])
            return
        rows = zip(self.collection.swapaxes(0, 1), self._matrix, strict=True)
        self.collection[np.mean([row_cosines(*row) for row in rows], axis=0).argmax()] = self._matrix

    def begin_step(self, horizon: np.ndarray | None) -> None:
        self._look_from(self.num_layers)

    def observe(self, layer: int, counts: np.ndarray) -> None:
        self._matrix[layer] += counts
        if len(self.collection):
            self._cosine_nL[:, layer] = row_cosines(self.collection[:, layer], self._matrix[layer])
            match_LE = self.collection[self._cosine_nL.sum(axis=1).argmax()]
            sums_L = match_LE.sum(axis=1, keepdims=True)
            self.predicted = np.divide(match_LE, sums_L, out=np.zeros_like(match_LE), where=sums_L > 0)
        self._look_from(layer)

    def _look_from(self, layer: int) -> None:
        """Both scores of every expert [L * E], as seen from the layer that asked last; L: no layer is ahead."""
        ahead_L1 = np.arange(self.num_layers)[:, None] - layer
        nearness_L1 = np.where(ahead_L1 > 0, 1 - ahead_L1 / self.num_layers, 0)
        early_L1 = 1 - np.arange(self.num_layers)[:, None] / self.num_layers
        self.priority = (self.predicted * nearness_L1).reshape(-1)
        self.retention = ((self.predicted + EPSILON) * early_L1).reshape(-1)

    def next_prefetch(self) -> int:
        absent = np.where(self.slots.slot_of < 0, self.priority, 0)
        key = int(absent.argmax())
        return key if absent[key] > 0 else -1

    def victim(self, key: int, urgent: bool) -> int:
        slot = self.slots.least(self.retention, self.priority[self.slots.key_of] == 0)
        return self.slots.least(self.retention) if slot < 0 and urgent else slot
