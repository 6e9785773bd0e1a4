"""Cache-conditional routing (2412.00099): the router is biased a little towards experts that have arrived.

Before the choice the logits of arrived experts are raised by lambda times the running mean of the logits' range in
this layer; a token's first `top_j` experts always stay. Compute then waits for what was chosen. Weights are the
router's own probabilities of what runs, rescaled. Axes: N tokens, K top-k, E experts.
"""

import numpy as np
from jaxtyping import Float32

from expertflow_jax.offload.misses.base import Decision, LayerStep, MissPolicy, count_option, number_option, rescale


class CachePrior(MissPolicy):
    """Experts that have arrived are preferred to slightly likelier ones that have not."""

    name = "cache_prior"
    fetches_dropped = False

    def __init__(
        self, strength: float = 0.2, top_j: int = 1, phase: str = "both", tokens: str = "both", layers: str = "all"
    ):
        """
        Args:
          strength: the paper's lambda; at 0 nothing changes.
          top_j: likeliest experts of each token that are never exchanged.

        Raises:
          InputError: a negative number, or see `MissPolicy`.
        """
        super().__init__(phase, tokens, layers)
        self.strength = number_option(self.name, "strength", strength)
        self.top_j = count_option(self.name, "top_j", top_j, 0)
        self._ranges: dict[int, tuple[int, float]] = {}  # of each layer: tokens so far, mean range of their logits

    def decide(self, step: LayerStep) -> Decision:
        logits = np.log(np.maximum(step.router_probs, np.finfo(np.float32).tiny))
        spread = self._mean_range(step, logits)
        allowed = self.allowed(step) & (step.expert_ids[:, 0] >= 0)
        if not self.strength or not allowed.any():
            return step.as_chosen()
        top_k = step.expert_ids.shape[1]
        scores = logits + np.float32(self.strength * spread) * step.usable
        np.put_along_axis(scores, np.maximum(step.expert_ids[:, : self.top_j], 0), np.float32(np.inf), axis=1)
        best = np.argsort(-scores, axis=1, kind="stable")[:, :top_k].astype(step.expert_ids.dtype)
        changed = allowed & (np.sort(best, axis=1) != np.sort(step.expert_ids, axis=1)).any(axis=1)
        if not changed.any():
            return step.as_chosen()
        ids = np.where(changed[:, None], best, step.expert_ids)
        parts = np.take_along_axis(step.router_probs, np.maximum(ids, 0), axis=1)
        return Decision(ids, rescale(step.weights, parts, changed))

    def _mean_range(self, step: LayerStep, logits: Float32[np.ndarray, "N E"]) -> float:
        valid = step.expert_ids[:, 0] >= 0
        count, mean = self._ranges.get(step.layer, (0, 0.0))
        if number := int(valid.sum()):
            total = count * mean + float(np.ptp(logits[valid], axis=1).sum(dtype=np.float64))
            count, mean = count + number, total / (count + number)
            self._ranges[step.layer] = count, mean
        return mean
