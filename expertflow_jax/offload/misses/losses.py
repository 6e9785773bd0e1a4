"""How much a miss policy changed: choices dropped and exchanged, and the router weight that did not run as chosen.

Worked out from what the router chose and what ran, so that it holds for any policy. Axes: N tokens, K top-k.
"""

import dataclasses
from typing import Any

import numpy as np

from expertflow_jax.offload.misses.base import Decision, LayerStep, shares


@dataclasses.dataclass
class Losses:
    """Sums over the layer-steps of a run; a choice is one of a token's K experts in one layer."""

    choices: int = 0
    dropped: int = 0
    exchanged: int = 0
    deferred: int = 0
    weight: float = 0.0
    discarded: float = 0.0

    def reset(self) -> None:
        """All are zero again."""
        vars(self).update(vars(Losses()))

    def add(self, step: LayerStep, decision: Decision) -> None:
        """Counts one layer-step."""
        chosen = step.expert_ids >= 0
        share = shares(step.weights)
        self.choices += int(chosen.sum())
        self.weight += float(share[chosen].sum(dtype=np.float64))
        if decision.as_chosen:
            return
        if decision.deferred is not None:
            self.deferred += int((chosen & decision.deferred[np.maximum(step.expert_ids, 0)]).sum())
        runs_too = (step.expert_ids[:, :, None] == decision.expert_ids[:, None, :]).any(axis=2)
        lost = chosen & ~runs_too
        missing = int(lost.sum())
        gone = int(chosen.sum()) - int((decision.expert_ids >= 0).sum())
        self.dropped += gone
        self.exchanged += missing - gone
        self.discarded += float(share[lost].sum(dtype=np.float64))

    def rates(self) -> dict[str, Any]:
        """By the row keys: shares of all choices, and of all weight."""
        choices, weight = max(self.choices, 1), self.weight or 1.0
        return {
            "dropped_rate": self.dropped / choices,
            "exchanged_rate": self.exchanged / choices,
            "deferred_rate": self.deferred / choices,
            "discarded_mass": min(self.discarded / weight, 1.0),
        }
