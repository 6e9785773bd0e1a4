"""Does without the absent experts that matter least to the whole batch, as many as a stated mass allows.

What waiting for an expert costs is one transfer, however many tokens chose it; what doing without it loses grows with
their weights. So the experts with the least weight in sum over the batch are dropped first, until `mass` of all weight
of the layer's tokens is gone. Own rule: thresholds per token (`drop_weak`) save little in a batch, where nearly every
expert is somebody's first. Axes: N tokens, K top-k, E experts.
"""

import numpy as np

from expertflow_jax.offload.misses.base import Decision, LayerStep, MissPolicy, arrived, number_option, shares, without


class DropLight(MissPolicy):
    """Experts that have not arrived and hold the least of the batch's weight do not run."""

    name = "drop_light"

    def __init__(self, mass: float = 0.05, phase: str = "both", tokens: str = "both", layers: str = "all"):
        """
        Args:
          mass: share of a layer-step's router weight that may be lost; at 0 nothing is.

        Raises:
          InputError: a share outside [0, 1], or see `MissPolicy`.
        """
        super().__init__(phase, tokens, layers)
        self.mass = number_option(self.name, "mass", mass, 1.0)

    def decide(self, step: LayerStep) -> Decision:
        if not self.mass:
            return step.as_chosen()
        chosen = step.expert_ids >= 0
        absent = chosen & ~arrived(step.expert_ids, step.usable)
        share = shares(step.weights)
        flat = step.expert_ids[absent]
        weight_E = np.bincount(flat, share[absent], minlength=len(step.usable)).astype(np.float64)  # ints of no choices
        protected = absent & ~self.allowed(step)[:, None]
        weight_E[step.expert_ids[protected]] = np.inf
        weight_E[np.bincount(flat, minlength=len(weight_E)) == 0] = np.inf
        order = np.argsort(weight_E, kind="stable")
        light = order[np.cumsum(weight_E[order]) <= self.mass * share[chosen].sum()]
        dropped_E = np.zeros(len(weight_E), bool)
        dropped_E[light] = True
        return without(step, absent & dropped_E[np.maximum(step.expert_ids, 0)])
