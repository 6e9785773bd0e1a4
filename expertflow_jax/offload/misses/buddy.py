"""Runs the expert that most often goes with the missing one, where the token's gate is flat (BuddyMoE, 2511.10054).

Two experts of a layer are the closer the more tokens chose both: recorded ones, as in the paper, or without a record
those that the run has routed so far. A missing
expert is exchanged for its closest buddy that has arrived and that the token does not run yet, with the missing one's
weight, if the gates of every token that chose it are flat; otherwise compute waits for it, and all run it.
Axes: N tokens, K top-k, L MoE layers, E experts.
"""

import itertools
from pathlib import Path

import numpy as np
from jaxtyping import Float32, Int64

from expertflow_jax.errors import InputError
from expertflow_jax.offload.misses.base import (
    Decision,
    Ids,
    LayerStep,
    MissPolicy,
    Weights,
    arrived,
    number_option,
    shares,
)
from expertflow_jax.routing.trace import RoutingTrace
from expertflow_jax.routing.trace_set import TraceSet


class Buddy(MissPolicy):
    """Missing experts give way to those that tokens often choose together with them."""

    name = "buddy"
    fetches_dropped = False

    def __init__(
        self, trace: str = "", flat: float = 0.9, phase: str = "both", tokens: str = "both", layers: str = "all"
    ):
        """
        Args:
          trace: recorded routing of the same model: a folder that `train.predictor` wrote below WORKDIR/traces, or a
            file of `RoutingTrace.save`; empty: pairs are counted during the run.
          flat: entropy of a token's K weights over log K from which on its gate is flat; above 1 no gate is.

        Raises:
          InputError: a damaged trace, a negative number, or see `MissPolicy`.
        """
        super().__init__(phase, tokens, layers)
        self.flat = number_option(self.name, "flat", flat)
        if not isinstance(trace, str):
            raise InputError("miss policy buddy: trace is a path, as in buddy(trace='WORKDIR/traces/train')")
        self.trace = trace
        self._together = recorded_pairs(Path(trace)) if trace else None  # [L, E, E]

    def decide(self, step: LayerStep) -> Decision:
        pairs_ExE = self._pairs(step)
        absent = (step.expert_ids >= 0) & ~arrived(step.expert_ids, step.usable)
        willing = (flatness(step.weights) >= self.flat) & self.allowed(step)
        waited = np.zeros(len(step.usable), bool)
        waited[step.expert_ids[absent & ~willing[:, None]]] = True
        ids = step.expert_ids.copy()
        for token, k in np.argwhere(absent & ~waited[np.maximum(step.expert_ids, 0)]):
            closeness = np.where(step.usable, pairs_ExE[step.expert_ids[token, k]], 0)
            closeness[ids[token][ids[token] >= 0]] = 0
            if closeness.any():
                ids[token, k] = closeness.argmax()
        if not self.trace:
            add_pairs(pairs_ExE, step.expert_ids)
        if np.array_equal(ids, step.expert_ids):
            return step.as_chosen()
        return Decision(ids, step.weights)

    def _pairs(self, step: LayerStep) -> Int64[np.ndarray, "E E"]:
        shape = step.num_layers, len(step.usable), len(step.usable)
        if self._together is None:
            self._together = np.zeros(shape, np.int64)
        if self._together.shape != shape:
            layers, experts = self._together.shape[:2]
            raise InputError(
                f"miss policy buddy: {self.trace} is of {layers} layers of {experts} experts, the model has "
                f"{step.num_layers} of {len(step.usable)}; record the model's own routing"
            )
        return self._together[step.layer]


def recorded_pairs(path: Path) -> Int64[np.ndarray, "L E E"]:
    """`coactivation` of a trace set's folder or a trace's file; raises InputError if it is missing or damaged."""
    return coactivation(TraceSet.load(path).trace if path.is_dir() else RoutingTrace.load(path))


def coactivation(trace: RoutingTrace) -> Int64[np.ndarray, "L E E"]:
    """How many tokens chose both experts of a layer; 0 on the diagonal."""
    together = np.zeros((trace.num_layers, trace.num_experts, trace.num_experts), np.int64)
    for layer in range(trace.num_layers):
        add_pairs(together[layer], trace.experts[:, :, layer].reshape(-1, trace.top_k))
    return together


def add_pairs(together: Int64[np.ndarray, "E E"], ids: Ids) -> None:
    """Counts in place, for every two experts, the tokens that chose both; -1 is no expert."""
    for a, b in itertools.permutations(range(ids.shape[1]), 2):
        both = (ids[:, a] >= 0) & (ids[:, b] >= 0)
        np.add.at(together, (ids[both, a], ids[both, b]), 1)


def flatness(weights: Weights) -> Float32[np.ndarray, " N"]:
    """Entropy of each token's weights over that of K equal ones; 0 with one expert."""
    share = shares(weights)
    if share.shape[1] < 2:
        return np.zeros(len(share), np.float32)
    logs = np.log(np.where(share > 0, share, 1))
    return -(share * logs).sum(axis=1) / np.float32(np.log(share.shape[1]))
