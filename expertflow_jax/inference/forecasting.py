"""Where a step's forecast comes from: nowhere, the trained predictor, or the recorded truth.

A forecast for the engine is a *horizon* float32 [H, L, E]: the probability that this step (index 0) and each of
the following ones uses an expert. Axes: H steps, B sequences, T tokens, D model width, L MoE layers, E experts.
"""

from collections.abc import Sequence
from typing import Protocol

import jax
import numpy as np

from expertflow_jax.offload.clock import Clock
from expertflow_jax.predictor.forecast import step_forecast
from expertflow_jax.predictor.runtime import Predictor, PredictorCache
from expertflow_jax.simulation.costs import ComputeCosts


class Forecaster(Protocol):
    """Gives the horizon of each step, in the order in which steps run."""

    def prefill(self, x: jax.Array, lengths: np.ndarray) -> np.ndarray | None:
        """Horizon for prefilling embeddings x [B, T, D]."""

    def decode(self, x: jax.Array, active: np.ndarray) -> np.ndarray | None:
        """Horizon for decoding embeddings x [B, 1, D]; active bool [B]."""


class NoForecast:
    """For policies that cache without looking ahead."""

    def prefill(self, x: jax.Array, lengths: np.ndarray) -> np.ndarray | None:
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

    def prefill(self, x: jax.Array, lengths: np.ndarray) -> np.ndarray | None:
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

    def prefill(self, x: jax.Array, lengths: np.ndarray) -> np.ndarray | None:
        probs, self._cache = self._predictor.prefill(x, lengths)
        probs = np.asarray(probs)
        self._charge(int(lengths.sum()))
        rows = np.arange(len(lengths))
        last = probs[rows, np.maximum(lengths - 1, 0)][:, None]
        return np.stack([step_forecast(probs, lengths), step_forecast(last, (lengths > 0).astype(np.int32))])

    def decode(self, x: jax.Array, active: np.ndarray) -> np.ndarray | None:
        assert self._cache is not None, "prefill comes before decode"
        probs, self._cache = self._predictor.decode(x, self._cache)
        self._charge(int(active.sum()))
        forecast = step_forecast(np.asarray(probs), active.astype(np.int32))
        return np.stack([forecast, forecast])

    def _charge(self, tokens: int) -> None:
        if self._costs is not None:
            self._clock.spend(self._costs.predictor_seconds(tokens), "predictor")
