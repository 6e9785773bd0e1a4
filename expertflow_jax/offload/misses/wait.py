"""Lossless: compute waits for every expert that the router chose."""

from expertflow_jax.offload.misses.base import Decision, LayerStep, MissPolicy


class Wait(MissPolicy):
    """Changes nothing."""

    name = "wait"
    lossless = True

    def __init__(self) -> None:
        """No options: nothing is lost anywhere."""

    def decide(self, step: LayerStep) -> Decision:
        return step.as_chosen()

    def resolve(self, expert_ids, weights, router_probs, usable):
        return expert_ids, weights
