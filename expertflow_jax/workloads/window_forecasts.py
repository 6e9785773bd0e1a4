"""The forecasters of a window: the trained predictor on the trained model, or its words carried over to a shape.

Axes: B sequences, T tokens, G steps of a continuation, M batches of a block, L MoE layers, E experts, K top-k.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from expertflow_jax.inference.forecasting import Forecaster, Queue, join_horizon
from expertflow_jax.inference.members import Member, Sequences
from expertflow_jax.inference.predicted import PredictedForecast
from expertflow_jax.inference.served import make_forecaster
from expertflow_jax.inference.session import InferenceSession
from expertflow_jax.offload.clock import Clock
from expertflow_jax.offload.variant import Variant
from expertflow_jax.predictor import Predictor
from expertflow_jax.predictor.forecast import combine_batches, wants_nearly_all
from expertflow_jax.workloads.windows import Window, at_the_end


class ReplayedForecast:
    """The trained predictor's forecast for a shape: the predictor runs on what the trained model read, in real time;
    its answer, put in terms of the shape's experts, was worked out before."""

    def __init__(
        self,
        predictor: Predictor,
        clock: Clock,
        embeddings: np.ndarray,
        forecasts: Sequence[tuple[np.ndarray, np.ndarray]],
        top_k: int,
    ):
        """
        Args:
          embeddings: float32 [M * B, T, D] of the trained model's input, prompt and continuation, of a block.
          forecasts: of each super-step, see `Window.forecasts`.
          top_k: K of the shape.
        """
        self._predictor = predictor
        self._clock = clock
        self._embeddings = embeddings
        self._forecasts = iter(forecasts)
        self._top_k = top_k
        self.tokens_saved = 0
        self._queue: Queue = ()
        self._step = 0
        self._cache: Any = None

    def expect(self, queued: Queue) -> None:
        self._queue = queued

    def warm(self, lengths: np.ndarray) -> None:
        """Reads the prompts before a decode window."""
        _, self._cache = self._predictor.forecast(self._embeddings[:, : lengths.max()], lengths)
        self._lengths = lengths

    def horizon(self, members: Sequence[Member], ends: Sequence[bool]) -> np.ndarray:
        now, following = next(self._forecasts)
        lengths = np.concatenate([member.lengths for member in members])
        if wants_nearly_all(int(lengths.sum()), self._top_k, now.shape[1]):
            self.tokens_saved += int(lengths.sum())
            now, following = np.ones_like(now), np.ones_like(following)
        else:
            self._read(members[0].phase, lengths)
        return join_horizon(now, [] if ends[0] else [following], self._queue, int(ends[0]))

    def _read(self, phase: str, lengths: np.ndarray) -> None:
        """Runs the predictor on what the trained model read in this step: int [M * B] tokens of each sequence."""
        with self._clock.measure("predictor"):
            if phase == "prefill":
                self._predictor.forecast(self._embeddings[:, : lengths.max()], lengths)
            else:
                token = self._embeddings[np.arange(len(lengths)), self._lengths + self._step][:, None]
                _, self._cache = self._predictor.forecast(token, None, self._cache)
                self._step += 1


def make_forecasters(
    window: Window, variant: Variant, truth: np.ndarray | None, session: InferenceSession, started: list[Sequences]
) -> list[Forecaster]:
    """The variant's forecasters, one per block, ready for the window.

    Args:
      truth: bool [steps, L, E], what each super-step of the window needs.
      started: see `Window.start`.
    """
    setup, clock = window.setup, session.engine.clock
    shared = make_forecaster(session, variant, setup.predictor, truth, look_ahead=window.num_steps)
    if not isinstance(shared, PredictedForecast):
        return [shared for _ in window.blocks]
    forecasters: list[Forecaster] = []
    queue: Queue = ()
    for n, forecasts in reversed(list(enumerate(window.forecasts()))):
        block = window.blocks[n]
        first = n * window.batches_per_block
        if setup.replayed:
            embeddings = setup.recording.embeddings[np.concatenate([b.rows for b in block])]
            replayed = ReplayedForecast(setup.predictor, clock, embeddings, forecasts, setup.full.top_k)
            if started:
                replayed.warm(np.concatenate([b.batch.lengths for b in block]))
                replayed.expect(queue)
                queue = [combine_batches([at_the_end(setup.following, b) for b in block])]
            forecasters.append(replayed)
        else:
            predicted = PredictedForecast(setup.predictor, clock, None)
            if started:
                states = started[first : first + len(block)]
                prompts = [
                    Member.prefill(b.batch, sequences, session.embed(b.batch)[0], None)
                    for b, sequences in zip(block, states, strict=True)
                ]
                foretold = predicted.foretell(prompts)
                predicted.expect(queue)
                queue = [combine_batches([part.following for part in foretold])]
            forecasters.append(predicted)
    return forecasters[::-1]
