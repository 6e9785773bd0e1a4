"""Does without experts that are both absent and weak, as BigMoeOnEdge's --drop-cold-experts does.

A token may do without an expert whose share of its weight is below F / K, never without its first one, and by default
never in a prefill. In a batch an expert that some token must wait for comes for all, so that only those are dropped
that no token waits for: the same transfers are saved, and less is lost. Axes: N tokens, K top-k, E experts.
"""

import numpy as np

from expertflow_jax.offload.misses.base import Decision, LayerStep, MissPolicy, arrived, number_option, shares, without


class DropWeak(MissPolicy):
    """Experts that have not arrived and are weak for every token that chose them do not run."""

    name = "drop_weak"

    def __init__(self, below: float = 1.0, phase: str = "decode", tokens: str = "both", layers: str = "all"):
        """
        Args:
          below: F; of K equal shares every one is 1 / K. At 0 nothing is dropped.

        Raises:
          InputError: a negative F, or see `MissPolicy`.
        """
        super().__init__(phase, tokens, layers)
        self.below = number_option(self.name, "below", below)

    def decide(self, step: LayerStep) -> Decision:
        absent = (step.expert_ids >= 0) & ~arrived(step.expert_ids, step.usable)
        weak = shares(step.weights) < self.below / step.expert_ids.shape[1]
        weak[:, 0] = False
        dropped = absent & weak & self.allowed(step)[:, None]
        waited = np.zeros(len(step.usable), bool)
        waited[step.expert_ids[absent & ~dropped]] = True
        return without(step, dropped & ~waited[np.maximum(step.expert_ids, 0)])
