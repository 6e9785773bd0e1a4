"""Where a super-step's forecast comes from: nowhere, the trained predictor, or the recorded truth.

A forecast for the engine is a *horizon* float32 [H, L, E]: the probability that this super-step (index 0) and each of
the following ones uses an expert, whichever of its members does. It looks beyond the batches that run: whoever knows
what waits in the queue says so with `expect`, and last steps keep the next batch's experts rather than those they have
just used.
Axes: H super-steps, M members, B sequences, T tokens, D model width, L MoE layers, E experts.
"""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from jaxtyping import Float

from expertflow_jax.inference.members import Member
from expertflow_jax.predictor.forecast import combine_batches

Queue = Sequence[Float[np.ndarray, "L E"]]  # P(a batch's first step uses the expert), of the batches next in line


class Forecaster(Protocol):
    """Gives the horizon of each super-step, in the order in which they run.

    Attributes:
      tokens_saved: that no predictor had to read, because without it as much was known.
    """

    tokens_saved: int

    def horizon(self, members: Sequence[Member], ends: Sequence[bool]) -> Float[np.ndarray, "H L E"] | None:
        """What the coming super-step and those after it will use.

        Args:
          members: that take part; of a batch that has read its prompts, every step up to here has been forecast.
          ends: of each, whether no step of its batch will follow.
        """

    def expect(self, queued: Queue) -> None:
        """What the batches next in line will use first, as far as it is known. In force until it is said anew."""


class NoForecast:
    """For policies that cache without looking ahead."""

    tokens_saved = 0

    def horizon(self, members: Sequence[Member], ends: Sequence[bool]) -> Float[np.ndarray, "H L E"] | None:
        return None

    def expect(self, queued: Queue) -> None:
        pass


class TrueForecast:
    """The recorded truth, for the `oracle` policy: what each super-step of this very run will need."""

    tokens_saved = 0

    def __init__(self, needed: Sequence[np.ndarray], look_ahead: int = 8):
        """Args: needed: bool [L, E] of every super-step, in order. look_ahead: H at most."""
        self._needed = np.stack(needed).astype(np.float32)
        self._look_ahead = look_ahead
        self.step = 0  # super-steps that have been foretold

    def horizon(self, members: Sequence[Member], ends: Sequence[bool]) -> Float[np.ndarray, "H L E"] | None:
        horizon = self._needed[self.step : self.step + self._look_ahead]
        self.step += 1
        return horizon

    def expect(self, queued: Queue) -> None:
        pass


# P(the step after next is the next batch's first one), where no batch is known to end with the running step. Of 0, 0.2,
# 0.5 and 1, 0.2 did best on recorded routing of three models (docs/engine.md).
SOON = 0.2


def join_horizon(
    now: Float[np.ndarray, "L E"], following: Sequence[Float[np.ndarray, "L E"]], queue: Queue, ending: int = 0
) -> Float[np.ndarray, "H L E"]:
    """Horizon of what the running super-step uses, the batches that go on use next, and the queue's use first.

    Args:
      following: of each batch that goes on.
      ending: batches that end with the running step; as many of the queue follow at once.
    """
    rows = [now]
    if after := [*following, *queue[:ending]]:
        rows.append(combine_batches(after))
    if queue and not ending:
        rows.append(SOON * queue[0])
    return np.stack(rows)
