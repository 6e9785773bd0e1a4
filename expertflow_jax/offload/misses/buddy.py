"""Runs the expert that most often goes with the missing one, where the token's gate is flat (BuddyMoE, 2511.10054).

Buddies are found beforehand: two experts of a layer are the closer the more recorded tokens chose both. A missing
expert is exchanged for its closest buddy that has arrived and that the token does not run yet, with the missing one's
weight, if the gates of every token that chose it are flat; otherwise compute waits for it, and all run it.
Axes: N tokens, K top-k, L MoE layers, E experts.
"""

from pathlib import Path

import numpy as np
from jaxtyping import Float32, Int64

from expertflow_jax.errors import InputError
from expertflow_jax.offload.misses.base import (
    Decision,
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
            file of `RoutingTrace.save`.
          flat: entropy of a token's K weights over log K from which on its gate is flat; above 1 no gate is.

        Raises:
          InputError: no or a damaged trace, a negative number, or see `MissPolicy`.
        """
        super().__init__(phase, tokens, layers)
        self.flat = number_option(self.name, "flat", flat)
        if not isinstance(trace, str) or not trace:
            raise InputError("miss policy buddy: give it a recorded trace, as in buddy(trace='WORKDIR/traces/train')")
        self.trace = trace
        path = Path(trace)
        recorded = TraceSet.load(path).trace if path.is_dir() else RoutingTrace.load(path)
        self._together = coactivation(recorded)  # [L, E, E]

    def decide(self, step: LayerStep) -> Decision:
        layers, experts = self._together.shape[:2]
        if (layers, experts) != (step.num_layers, len(step.usable)):
            raise InputError(
                f"miss policy buddy: {self.trace} is of {layers} layers of {experts} experts, the model has "
                f"{step.num_layers} of {len(step.usable)}; record the model's own routing"
            )
        absent = (step.expert_ids >= 0) & ~arrived(step.expert_ids, step.usable)
        willing = (flatness(step.weights) >= self.flat) & self.allowed(step)
        waited = np.zeros(experts, bool)
        waited[step.expert_ids[absent & ~willing[:, None]]] = True
        ids = step.expert_ids.copy()
        for token, k in np.argwhere(absent):
            missing = step.expert_ids[token, k]
            if not waited[missing]:
                closeness = np.where(step.usable, self._together[step.layer, missing], 0)
                closeness[ids[token][ids[token] >= 0]] = 0
                if closeness.any():
                    ids[token, k] = closeness.argmax()
        if np.array_equal(ids, step.expert_ids):
            return step.as_chosen()
        return Decision(ids, step.weights)


def coactivation(trace: RoutingTrace) -> Int64[np.ndarray, "L E E"]:
    """How many tokens chose both experts of a layer; 0 on the diagonal."""
    together = np.zeros((trace.num_layers, trace.num_experts, trace.num_experts), np.int64)
    for layer in range(trace.num_layers):
        chosen_NxK = trace.experts[:, :, layer].reshape(-1, trace.top_k)
        for a in range(trace.top_k):
            for b in range(trace.top_k):
                both = (chosen_NxK[:, a] >= 0) & (chosen_NxK[:, b] >= 0) & (a != b)
                np.add.at(together[layer], (chosen_NxK[both, a], chosen_NxK[both, b]), 1)
    return together


def flatness(weights: Weights) -> Float32[np.ndarray, " N"]:
    """Entropy of each token's weights over that of K equal ones; 0 with one expert."""
    share = shares(weights)
    if share.shape[1] < 2:
        return np.zeros(len(share), np.float32)
    logs = np.log(np.where(share > 0, share, 1))
    return -(share * logs).sum(axis=1) / np.float32(np.log(share.shape[1]))
