"""What one cell times: a window of prefill steps alone, or of decode steps alone, over the recorded sequences.

Timed apart, each phase has a physical limit of its own: the cache starts from the same content in every repeat and
nothing but the window's steps moves experts. A decode window starts with the prompts' KV caches already there, and with
the predictor having read them, so that what each batch's first step will use is foreseen.
Axes: B sequences, T tokens, G steps of a continuation, L MoE layers, E experts, K top-k.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from expertflow_jax.inference.forecasting import Forecaster, Queue, TrueForecast, join_horizon
from expertflow_jax.inference.members import Member, Sequences
from expertflow_jax.inference.memory import RequestSize, plan_request
from expertflow_jax.inference.predicted import PredictedForecast
from expertflow_jax.inference.served import make_forecaster, serve
from expertflow_jax.inference.session import InferenceSession
from expertflow_jax.offload.budget import MemoryPlan
from expertflow_jax.offload.clock import Clock
from expertflow_jax.offload.variant import RESIDENT, Variant
from expertflow_jax.predictor import Predictor
from expertflow_jax.predictor.forecast import combine_sequences, step_forecast
from expertflow_jax.processing.batching import PromptBatch, pad_prompts
from expertflow_jax.workloads.setups import Setup

PHASES = ("prefill", "decode")


@dataclasses.dataclass
class WindowBatch:
    """One batch of a window.

    Attributes:
      rows: int [B], which recorded sequences.
      batch: their prompts, padded.
      snapshot: the KV cache after the prompts (decode), per layer two host arrays; None for an empty one.
    """

    rows: np.ndarray
    batch: PromptBatch
    snapshot: list[tuple[np.ndarray, np.ndarray]] | None = None


@dataclasses.dataclass
class Window:
    """Steps of one phase.

    Attributes:
      phase: "prefill" or "decode".
      batches: run one after another.
      new_tokens: G, decode steps per batch; room for as many is kept in a prefill.
    """

    setup: Setup
    phase: str
    batch_size: int
    batches: list[WindowBatch]
    new_tokens: int

    @property
    def tokens(self) -> int:
        """Processed in the window, padding left out."""
        if self.phase == "prefill":
            return sum(int(b.batch.lengths.sum()) for b in self.batches)
        return len(self.batches) * self.batch_size * self.new_tokens

    @property
    def num_steps(self) -> int:
        return len(self.batches) * (1 if self.phase == "prefill" else self.new_tokens)

    def routing(self) -> list[np.ndarray]:
        """The recorded choice of every step: int32 [B, T, L, K], -1 on padding."""
        ids, steps = self.setup.ids, []
        for b in self.batches:
            lengths = b.batch.lengths
            if self.phase == "prefill":
                steps.append(_cut(ids[b.rows], lengths, b.batch.input_ids.shape[1], -1))
            else:
                steps += [ids[b.rows, lengths + g][:, None] for g in range(self.new_tokens)]
        return steps

    def forecasts(self) -> list[list[tuple[np.ndarray, np.ndarray]]]:
        """What the predictor says at every step, per batch: float32 [L, E] of the step's tokens, and of those that
        follow each sequence's last."""
        setup, forecasts = self.setup, []
        for b in self.batches:
            if self.phase == "prefill":
                use = step_forecast(setup.forecast[b.rows], b.batch.lengths)
                forecasts.append([(use, at_the_end(setup.following, b))])
                continue
            tokens = [(b.rows, b.batch.lengths + g) for g in range(self.new_tokens)]
            forecasts.append(
                [
                    (combine_sequences(setup.forecast[token]), combine_sequences(setup.following[token]))
                    for token in tokens
                ]
            )
        return forecasts

    def plan(self, cache_fraction: float, forecasts: bool) -> MemoryPlan:
        """Device memory of a run; `cache_fraction` 0 stands for one slot, the least that works."""
        setup = self.setup
        prompts = [setup.prompts[row] for b in self.batches for row in b.rows]
        size = RequestSize.of(prompts, self.batch_size, self.new_tokens)
        stages = setup.own_stages
        fraction = cache_fraction or 1 / setup.num_experts
        plan = plan_request(
            setup.config,
            stages.dense_bytes,
            setup.store.expert_bytes,
            size,
            itemsize=np.dtype(stages.dtype).itemsize,
            predictor=setup.predictor if forecasts else None,
            cache_fraction=fraction,
        )
        more = len(self.batches) - 1
        cache = setup.predictor.cache_nbytes(self.batch_size, size.tokens + size.new_tokens) if forecasts else 0
        if self.phase == "prefill":
            # a forecast keeps its cache to the end of the window; the next batch waits embedded
            levels = 0 if setup.config.vision is None else setup.config.vision.feature_levels
            width = setup.config.text.hidden_size * np.dtype(stages.dtype).itemsize
            waiting = min(more, 1) * self.batch_size * size.tokens * width * (1 + levels) if forecasts else 0
            return dataclasses.replace(
                plan,
                predictor_bytes=plan.predictor_bytes + more * cache,
                workspace_bytes=plan.workspace_bytes + waiting,
            )
        # all batches of a decode window hold their caches from the beginning
        return dataclasses.replace(
            plan,
            kv_bytes=plan.kv_bytes * len(self.batches),
            predictor_bytes=plan.predictor_bytes + more * cache,
        )

    def fill_caches(self) -> None:
        """Runs the prompts once with everything resident and keeps their KV caches for a decode window."""
        with serve(self.setup, RESIDENT) as session:
            for b in self.batches:
                x, deepstack = session.embed(b.batch)
                sequences = session.start(b.batch, self.new_tokens)
                session.prefill(b.batch, sequences, x, deepstack, None)
                b.snapshot = [(np.asarray(k), np.asarray(v)) for k, v in sequences.kv]

    def start(self, session: InferenceSession) -> list[Sequences]:
        """Device state of every batch before the window; none for a prefill, which makes its own."""
        if self.phase == "prefill":
            return []
        started = []
        for b in self.batches:
            sequences = session.start(b.batch, self.new_tokens)
            if b.snapshot is not None:
                sequences.kv = [(jnp.array(k), jnp.array(v)) for k, v in b.snapshot]
            sequences.lengths = b.batch.lengths.copy()
            started.append(sequences)
        return started

    def run(self, session: InferenceSession, started: list[Sequences], forecasters: Sequence[Forecaster]) -> None:
        """The timed part; the host has read the last logits when it returns."""
        if self.phase == "prefill":
            for member, horizon in self._forecast_ahead(session, forecasters):
                [hidden] = session.super_step([member], horizon)
                session.last_logits(hidden, member.lengths)
            return
        active = np.ones(self.batch_size, bool)
        for b, sequences, forecaster in zip(self.batches, started, forecasters, strict=True):
            tokens = self.setup.recording.tokens[b.rows]
            session.begin_batch()
            for step in range(self.new_tokens):
                x = session.stages.embed(np.ascontiguousarray(tokens[:, step : step + 1]), None, None)
                member = Member.decode(sequences, x, active)
                horizon = forecaster.horizon([member], [step + 1 == self.new_tokens])
                [hidden] = session.super_step([member], horizon)
                session.last_logits(hidden, member.lengths)

    def _forecast_ahead(
        self, session: InferenceSession, forecasters: Sequence[Forecaster]
    ) -> Iterator[tuple[Member, np.ndarray | None]]:
        """Each batch of prompts with its horizon. The predictor runs one batch before the model does, so that the cache
        knows what waits in the queue."""
        waiting: tuple[Member, np.ndarray] | None = None
        for b, forecaster in zip(self.batches, forecasters, strict=True):
            x, deepstack = session.embed(b.batch)
            member = Member.prefill(b.batch, session.start(b.batch, self.new_tokens), x, deepstack)
            horizon = forecaster.horizon([member], [True])
            if horizon is None or isinstance(forecaster, TrueForecast):
                yield member, horizon
                continue
            if waiting is not None:
                before, own = waiting
                yield before, join_horizon(own[0], [], [horizon[0]], ending=1)
            waiting = member, horizon
        if waiting is not None:
            yield waiting


def make_window(setup: Setup, phase: str, batch_size: int, num_batches: int, new_tokens: int) -> Window:
    """A window over the first sequences of the recording, again from the beginning when they run out."""
    count = len(setup.prompts)
    batches = []
    for n in range(num_batches):
        rows = np.arange(n * batch_size, (n + 1) * batch_size) % count
        batches.append(WindowBatch(rows, pad_prompts(setup.config, [setup.prompts[row] for row in rows], batch_size)))
    return Window(setup, phase, batch_size, batches, new_tokens)


class ReplayedForecast:
    """The trained predictor's forecast for a shape: the predictor runs on what the trained model read, in real time;
    its answer, put in terms of the shape's experts, was worked out before."""

    def __init__(
        self,
        predictor: Predictor,
        clock: Clock,
        embeddings: np.ndarray,
        forecasts: Sequence[tuple[np.ndarray, np.ndarray]],
    ):
        """
        Args:
          embeddings: float32 [B, T, D] of the trained model's input, prompt and continuation.
          forecasts: of each step, see `Window.forecasts`.
        """
        self._predictor = predictor
        self._clock = clock
        self._embeddings = embeddings
        self._forecasts = iter(forecasts)
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
        [member], [ends_now] = members, ends
        with self._clock.measure("predictor"):
            if member.phase == "prefill":
                self._predictor.forecast(self._embeddings[:, : member.lengths.max()], member.lengths)
            else:
                token = self._embeddings[np.arange(len(self._lengths)), self._lengths + self._step][:, None]
                _, self._cache = self._predictor.forecast(token, None, self._cache)
                self._step += 1
        now, following = next(self._forecasts)
        return join_horizon(now, [] if ends_now else [following], self._queue, int(ends_now))


def make_forecasters(
    window: Window, variant: Variant, truth: np.ndarray | None, session: InferenceSession, started: list[Sequences]
) -> list[Forecaster]:
    """The variant's forecasters, one per batch, ready for the window.

    Args:
      truth: bool [steps, L, E], what each step of the window needs.
      started: see `Window.start`.
    """
    setup, clock = window.setup, session.engine.clock
    shared = make_forecaster(session, variant, setup.predictor, truth, look_ahead=window.num_steps)
    if not isinstance(shared, PredictedForecast):
        return [shared for _ in window.batches]
    forecasters: list[Forecaster] = []
    queue: Queue = ()
    for n, forecasts in reversed(list(enumerate(window.forecasts()))):
        b = window.batches[n]
        if setup.replayed:
            replayed = ReplayedForecast(setup.predictor, clock, setup.recording.embeddings[b.rows], forecasts)
            if started:
                replayed.warm(b.batch.lengths)
                replayed.expect(queue)
                queue = [at_the_end(setup.following, b)]
            forecasters.append(replayed)
        else:
            predicted = PredictedForecast(setup.predictor, clock, None)
            if started:
                prompts = Member.prefill(b.batch, started[n], session.embed(b.batch)[0], None)
                [foretold] = predicted.foretell([prompts])
                predicted.expect(queue)
                queue = [foretold.following]
            forecasters.append(predicted)
    return forecasters[::-1]


def at_the_end(following: np.ndarray, b: WindowBatch) -> np.ndarray:
    """float32 [L, E]: `Setup.following` after the prompts of a batch, what its first decode step will use."""
    return combine_sequences(following[b.rows, b.batch.lengths - 1])


def _cut(ids: np.ndarray, lengths: np.ndarray, width: int, fill: int) -> np.ndarray:
    """ids [B, T, L, K] to T = width, with `fill` from `lengths` on."""
    out = np.full((len(ids), width, *ids.shape[2:]), fill, ids.dtype)
    have = min(width, ids.shape[1])
    out[:, :have] = ids[:, :have]
    out[np.arange(width) >= lengths[:, None]] = fill
    return out
