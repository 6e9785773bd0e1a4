"""A control: every token runs fewer experts than its router chose, whether or not they have arrived."""

import numpy as np

from expertflow_jax.offload.misses.base import Decision, LayerStep, MissPolicy, count_option, without


class FewerExperts(MissPolicy):
    """The likeliest `top_k` run, with the weight of all; compute waits for them."""

    name = "fewer_experts"
    fetches_dropped = False

    def __init__(self, top_k: int = 1, phase: str = "both", tokens: str = "both", layers: str = "all"):
        """
        Args:
          top_k: at least 1; with the model's own nothing changes.

        Raises:
          InputError: less than one expert, or see `MissPolicy`.
        """
        super().__init__(phase, tokens, layers)
        self.top_k = count_option(self.name, "top_k", top_k, 1)

    def decide(self, step: LayerStep) -> Decision:
        rank = np.arange(step.expert_ids.shape[1])
        beyond = (step.expert_ids >= 0) & (rank >= self.top_k) & self.allowed(step)[:, None]
        return without(step, beyond)
