"""Where a step's forecast comes from: nowhere, the trained predictor, or the recorded truth.

A forecast for the engine is a *horizon* float32 [H, L, E]: the probability that this step (index 0) and each of
the following ones uses an expert. Axes: H steps, B sequences, T tokens, D model width, L MoE layers, E experts.
"""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Protocol

import jax
import numpy as np

from expertflow_jax.offload.clock import Clock
from expertflow_jax.predictor.forecast import step_forecast
from expertflow_jax.predictor.runtime import Predictor, PredictorCache
from expertflow_jax.simulation.costs import ComputeCosts


class Forecaster(Protocol):
    """Gives the horizon of each step, in the order in which steps run."""

    def prefill(self, x: jax.Array, lengths: np.ndarray, visits: np.ndarray | None = None) -> np.ndarray | None:
        """Horizon for prefilling embeddings x [B, T, D]; visits: see `PromptBatch.visits`."""

    def decode(self, x: jax.Array, active: np.ndarray) -> np.ndarray | None:
        """Horizon for decoding embeddings x [B, 1, D]; active bool [B]."""


class NoForecast:
    """For policies that cache without looking ahead."""

    def prefill(self, x: jax.Array, lengths: np.ndarray, visits: np.ndarray | None = None) -> np.ndarray | None:
        return None

    def decode(self, x: jax.Array, active: np.ndarray) -> np.ndarray | None:
        return None


class TrueForecast:
    """The recorded truth, for the `oracle` policy: what each step of this very run will need."""

    def __init__(self, needed: Sequence[np.ndarray], look_ahead: int = 8):
        """Args: needed: bool [L, E] of every step, in order. look_ahead: H at most."""
        self._needed = np.stack(needed).astype(np.float32)
        self._look_ahead = look_ahead
        self._step = 0

    def prefill(self, x: jax.Array, lengths: np.ndarray, visits: np.ndarray | None = None) -> np.ndarray | None:
        return self._next()

    def decode(self, x: jax.Array, active: np.ndarray) -> np.ndarray | None:
        return self._next()

    def _next(self) -> np.ndarray:
        horizon = self._needed[self._step : self._step + self._look_ahead]
        self._step += 1
        return horizon


class PredictedForecast:
    """The routing path predictor on this batch, with its own cost on the clock.

    The step after this one is estimated too: after a prefill from the last token of each prompt, in decoding from
    the token at hand, since successive tokens of a sequence route alike.
    """

    def __init__(self, predictor: Predictor, clock: Clock, costs: ComputeCosts | None):
        self._predictor = predictor
        self._clock = clock
        self._costs = costs
        self._cache: PredictorCache | None = None
        self._visits: np.ndarray | None = None

    def prefill(self, x: jax.Array, lengths: np.ndarray, visits: np.ndarray | None = None) -> np.ndarray | None:
        with predictor_time(self._clock, self._costs, int(lengths.sum())):
            probs, self._cache = self._predictor.prefill(x, lengths)
        rows = np.arange(len(lengths))
        if visits is not None:
            probs = probs * visits[..., None]
            self._visits = visits[rows, np.maximum(lengths - 1, 0)][:, None, :, None]
        last = probs[rows, np.maximum(lengths - 1, 0)][:, None]
        return np.stack([step_forecast(probs, lengths), step_forecast(last, (lengths > 0).astype(np.int32))])

    def decode(self, x: jax.Array, active: np.ndarray) -> np.ndarray | None:
        assert self._cache is not None, "prefill comes before decode"
        with predictor_time(self._clock, self._costs, int(active.sum())):
            probs, self._cache = self._predictor.decode(x, self._cache)
        if self._visits is not None:
            probs = probs * self._visits
        forecast = step_forecast(probs, active.astype(np.int32))
        return np.stack([forecast, forecast])


@contextlib.contextmanager
def predictor_time(clock: Clock, costs: ComputeCosts | None, tokens: int, name: str = "") -> Iterator[None]:
    """Books a run of the predictor over `tokens`: its recorded cost, or on the real clock what it takes."""
    if costs is None:
        with clock.measure("predictor", name):
            yield
    else:
        yield
        clock.spend(costs.predictor_seconds(tokens), "predictor", name)
