"""Serves a miss from a quantised copy of the expert where its gate is small: HOBBIT's rule (2411.01433).

Of a token's choices in the order of their gates, s is the share of all that stand before it, 0 for the first. An absent
expert comes whole where s <= t1, as a quantised copy where s <= t2, and is skipped beyond. In a batch one transfer
serves all tokens, so that an expert comes in the best form that any of them wants, and all use it. With t1 below 0
every miss is a quantised copy. Axes: N tokens, K top-k, E experts.
"""

import dataclasses

import numpy as np

from expertflow_jax.errors import InputError
from expertflow_jax.models.expert_dtypes import BITS
from expertflow_jax.offload.misses.base import Decision, LayerStep, MissPolicy, arrived, number_option, shares, without

_DTYPES = {bits: dtype for dtype, bits in BITS.items()}


class LowPrecision(MissPolicy):
    """Experts that have not arrived come whole, as a copy of few bits, or not at all, by the rank of their gates."""

    name = "low_precision"
    fetches_dropped = False

    def __init__(
        self,
        bits: int = 4,
        t1: float = 0.6,
        t2: float = 0.9,
        phase: str = "both",
        tokens: str = "both",
        layers: str = "all",
    ):
        """
        Args:
          bits: 8 or 4, of the copies.
          t1, t2: HOBBIT's thresholds, 0.6 and 0.9 for Mixtral; with both 1 nothing is lost.

        Raises:
          InputError: other bits, a threshold outside [-1, 1], t2 below t1, or see `MissPolicy`.
        """
        super().__init__(phase, tokens, layers)
        if bits not in _DTYPES:
            raise InputError(f"miss policy low_precision: bits={bits!r}; want 8 or 4")
        self.bits = bits
        self.t1 = number_option(self.name, "t1", t1, 1.0, low=-1.0)
        self.t2 = number_option(self.name, "t2", t2, 1.0, low=-1.0)
        if t2 < t1:
            raise InputError(f"miss policy low_precision: t2={t2!r} is below t1={t1!r}; write the smaller one as t1")

    @property
    def copies(self) -> str:
        """By `bits`."""
        return _DTYPES[self.bits]

    def decide(self, step: LayerStep) -> Decision:
        share = shares(step.weights)
        before = np.minimum(np.cumsum(share, axis=1, dtype=np.float32) - share, 1.0)
        absent = (step.expert_ids >= 0) & ~arrived(step.expert_ids, step.usable)
        whole = absent & ((before <= self.t1) | ~self.allowed(step)[:, None])
        copy = absent & (before <= self.t2)
        quantized = _chosen(step, copy) & ~_chosen(step, whole)
        comes = quantized | _chosen(step, whole)
        decision = without(step, absent & ~comes[np.maximum(step.expert_ids, 0)])
        if not quantized.any():
            return decision
        return dataclasses.replace(decision, as_chosen=False, quantized=quantized)


def _chosen(step: LayerStep, where: np.ndarray) -> np.ndarray:
    """Experts that the choices at `where`, bool [N, K], are of: bool [E]."""
    experts = np.zeros(len(step.usable), bool)
    experts[step.expert_ids[where]] = True
    return experts
