"""Adds the output of a token's least experts one MoE layer later: KTransformers' expert deferral (SOSP 2025).

There experts run on the CPU beside the GPU, and the `M` experts with the least weight of each token finish while the
next layer's attention runs (kt-kernel, `max_deferred_experts_per_token`; in the final layer always 0). Here experts
travel, so that only absent ones are deferred, and in a batch only those that no token must wait for: their transfers
may take until the end of the next MoE layer. Axes: N tokens, K top-k, E experts.
"""

import numpy as np

from expertflow_jax.offload.misses.base import Decision, LayerStep, MissPolicy, arrived, count_option


class Defer(MissPolicy):
    """Experts that have not arrived and rank last for every token that chose them count one layer later."""

    name = "defer"
    fetches_dropped = False

    def __init__(self, experts: int = 1, phase: str = "both", tokens: str = "both", layers: str = "all"):
        """
        Args:
          experts: M, of each token at most; its first one is never deferred. At 0 nothing is.

        Raises:
          InputError: no whole number from 0 up, or see `MissPolicy`.
        """
        super().__init__(phase, tokens, layers)
        self.experts = count_option(self.name, "experts", experts, 0)

    def decide(self, step: LayerStep) -> Decision:
        top_k = step.expert_ids.shape[1]
        absent = (step.expert_ids >= 0) & ~arrived(step.expert_ids, step.usable)
        last = np.arange(top_k) >= max(1, top_k - self.experts)
        willing = absent & last & self.allowed(step)[:, None]
        deferred = np.zeros(len(step.usable), bool)
        deferred[step.expert_ids[willing]] = True
        deferred[step.expert_ids[absent & ~willing]] = False
        if step.layer == step.num_layers - 1 or not deferred.any():
            return step.as_chosen()
        return Decision(step.expert_ids, step.weights, deferred=deferred)
