"""Where a step's forecast comes from: nowhere, the trained predictor, or the recorded truth.

A forecast for the engine is a *horizon* float32 [H, L, E]: the probability that this step (index 0) and each of
the following ones uses an expert. It looks beyond the batch: whoever knows what waits in the queue says so with
`expect`, and the batch's last steps keep the next batch's experts rather than those they have just used.
Axes: H steps, B sequences, T tokens, D model width, L MoE layers, E experts.
"""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Protocol

import jax
import numpy as np

from expertflow_jax.offload.clock import Clock
from expertflow_jax.predictor.forecast import combine_sequences
from expertflow_jax.predictor.runtime import Predictor, PredictorCache
from expertflow_jax.simulation.costs import ComputeCosts


class Forecaster(Protocol):
    """Gives the horizon of each step, in the order in which steps run.

    `ends`: no step of this batch will follow.
    """

    def prefill(
        self, x: jax.Array, lengths: np.ndarray, visits: np.ndarray | None = None, *, ends: bool = False
    ) -> np.ndarray | None:
        """Horizon for prefilling embeddings x [B, T, D]; visits: see `PromptBatch.visits`."""

    def decode(self, x: jax.Array, active: np.ndarray, *, ends: bool = False) -> np.ndarray | None:
        """Horizon for decoding embeddings x [B, 1, D]; active bool [B]."""

    def expect(self, queued: np.ndarray | None) -> None:
        """What the first step after this batch will use, as far as it is known: float32 [L, E], probabilities; None:
        nothing is. Said before the batch's first step, and forgotten with its last."""


class NoForecast:
    """For policies that cache without looking ahead."""

    def prefill(
        self, x: jax.Array, lengths: np.ndarray, visits: np.ndarray | None = None, *, ends: bool = False
    ) -> np.ndarray | None:
        return None

    def decode(self, x: jax.Array, active: np.ndarray, *, ends: bool = False) -> np.ndarray | None:
        return None

    def expect(self, queued: np.ndarray | None) -> None:
        pass


class TrueForecast:
    """The recorded truth, for the `oracle` policy: what each step of this very run will need."""

    def __init__(self, needed: Sequence[np.ndarray], look_ahead: int = 8):
        """Args: needed: bool [L, E] of every step, in order. look_ahead: H at most."""
        self._needed = np.stack(needed).astype(np.float32)
        self._look_ahead = look_ahead
        self._step = 0

    def prefill(
        self, x: jax.Array, lengths: np.ndarray, visits: np.ndarray | None = None, *, ends: bool = False
    ) -> np.ndarray | None:
        return self._next()

    def decode(self, x: jax.Array, active: np.ndarray, *, ends: bool = False) -> np.ndarray | None:
        return self._next()

    def expect(self, queued: np.ndarray | None) -> None:
        pass

    def _next(self) -> np.ndarray:
        horizon = self._needed[self._step : self._step + self._look_ahead]
        self._step += 1
        return horizon


# P(the step after next is the next batch's first one), where the batch may go on. Of 0, 0.2, 0.5 and 1, 0.2 did best on
# recorded routing of three models (docs/engine.md).
SOON = 0.2


def join_horizon(
    now: np.ndarray, following: np.ndarray, queued: np.ndarray | None, *, ends: bool = False
) -> np.ndarray:
    """Horizon float32 [H, L, E] of what this step, this batch's next one and the queue's first use, each [L, E]."""
    rows = [now]
    if not ends:
        rows.append(following)
    if queued is not None:
        rows.append(queued if ends else SOON * queued)
    return np.stack(rows)


class PredictedForecast:
    """The routing path predictor on this batch, with its own cost on the clock: of the tokens at hand, and of the one
    after each sequence's last."""

    def __init__(self, predictor: Predictor, clock: Clock, costs: ComputeCosts | None):
        self._predictor = predictor
        self._clock = clock
        self._costs = costs
        self._cache: PredictorCache | None = None
        self._visits: np.ndarray | None = None  # bool [B, 1, L], of the token that follows each sequence's last
        self._queued: np.ndarray | None = None

    def expect(self, queued: np.ndarray | None) -> None:
        self._queued = queued

    def prefill(
        self, x: jax.Array, lengths: np.ndarray, visits: np.ndarray | None = None, *, ends: bool = False
    ) -> np.ndarray | None:
        self._cache = None
        if visits is not None:
            self._visits = visits[np.arange(len(lengths)), np.maximum(lengths - 1, 0)][:, None]
        return self._step(x, lengths, lengths > 0, visits, ends)

    def decode(self, x: jax.Array, active: np.ndarray, *, ends: bool = False) -> np.ndarray | None:
        assert self._cache is not None, "prefill comes before decode"
        return self._step(x, active.astype(np.int32), active, self._visits, ends)

    def following(self, active: np.ndarray) -> np.ndarray:
        """float32 [L, E], what the next token of the sequences `active` bool [B] will use."""
        assert self._cache is not None, "something has to be read first"
        probs = self._cache.following
        if self._visits is not None:
            probs = probs * self._visits[:, 0, :, None]
        return combine_sequences(probs[active])

    def _step(
        self, x: jax.Array, lengths: np.ndarray, active: np.ndarray, visits: np.ndarray | None, ends: bool
    ) -> np.ndarray:
        with predictor_time(self._clock, self._costs, int(lengths.sum())):
            # After the prompts every sequence is read on, also one that has stopped; what it would use is left out.
            read = lengths if self._cache is None else None
            use, self._cache = self._predictor.forecast(x, read, self._cache, visits)
        return join_horizon(combine_sequences(use[active]), self.following(active), self._queued, ends=ends)


@contextlib.contextmanager
def predictor_time(clock: Clock, costs: ComputeCosts | None, tokens: int, name: str = "") -> Iterator[None]:
    """Books a run of the predictor over `tokens`: its recorded cost, or on the real clock what it takes."""
    if costs is None:
        with clock.measure("predictor", name):
            yield
    else:
        yield
        clock.spend(costs.predictor_seconds(tokens), "predictor", name)
