"""What one cell times: a window of prefill steps alone, or of decode steps alone, over the recorded sequences.

Timed apart, each phase has a physical limit of its own: the cache starts from the same content in every repeat and
nothing but the window's steps moves experts. A decode window starts with the prompts' KV caches already there, and with
the predictor having read them, so that what each batch's first step will use is foreseen.
Axes: B sequences, T tokens, G steps of a continuation, L MoE layers, E experts, K top-k.
"""

import dataclasses
from collections.abc import Iterator, Sequence

import jax.numpy as jnp
import numpy as np

from expertflow_jax.inference.forecasting import Forecaster, TrueForecast, join_horizon
from expertflow_jax.inference.members import Member, Sequences
from expertflow_jax.inference.memory import RequestSize, plan_request
from expertflow_jax.inference.served import serve
from expertflow_jax.inference.session import InferenceSession
from expertflow_jax.offload.budget import MemoryPlan
from expertflow_jax.offload.variant import RESIDENT
from expertflow_jax.predictor.forecast import combine_batches, combine_sequences, step_forecast
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
      batches: run in this order.
      new_tokens: G, decode steps per batch; room for as many is kept in a prefill.
      batches_per_block: M, batches that go through the layers together.
    """

    setup: Setup
    phase: str
    batch_size: int
    batches: list[WindowBatch]
    new_tokens: int
    batches_per_block: int = 1

    @property
    def blocks(self) -> list[list[WindowBatch]]:
        """Batches that go through the layers together; the last block may have fewer."""
        return self._by_block(self.batches)

    def _by_block[Item](self, items: list[Item]) -> list[list[Item]]:
        size = self.batches_per_block
        return [items[first : first + size] for first in range(0, len(items), size)]

    @property
    def tokens(self) -> int:
        """Processed in the window, padding left out."""
        if self.phase == "prefill":
            return sum(int(b.batch.lengths.sum()) for b in self.batches)
        return len(self.batches) * self.batch_size * self.new_tokens

    @property
    def num_steps(self) -> int:
        """Super-steps."""
        return len(self.blocks) * (1 if self.phase == "prefill" else self.new_tokens)

    def routing(self) -> list[list[np.ndarray]]:
        """The recorded choice of each member of every super-step: int32 [B, T, L, K], -1 on padding."""
        ids, steps = self.setup.ids, []
        for block in self.blocks:
            if self.phase == "prefill":
                steps.append([_cut(ids[b.rows], b.batch.lengths, b.batch.input_ids.shape[1], -1) for b in block])
            else:
                steps += [[ids[b.rows, b.batch.lengths + g][:, None] for b in block] for g in range(self.new_tokens)]
        return steps

    def forecasts(self) -> list[list[tuple[np.ndarray, np.ndarray]]]:
        """What the predictor says at every super-step, per block: float32 [L, E] of the step's tokens, and of those
        that follow each sequence's last."""
        forecasts = []
        for block in self.blocks:
            steps = zip(*(self._forecasts_of(b) for b in block), strict=True)
            pairs = [zip(*members, strict=True) for members in steps]  # of a super-step: all `now`, all `following`
            forecasts.append([(combine_batches(now), combine_batches(following)) for now, following in pairs])
        return forecasts

    def _forecasts_of(self, b: WindowBatch) -> list[tuple[np.ndarray, np.ndarray]]:
        """The same of one batch."""
        setup = self.setup
        if self.phase == "prefill":
            return [(step_forecast(setup.forecast[b.rows], b.batch.lengths), at_the_end(setup.following, b))]
        tokens = [(b.rows, b.batch.lengths + g) for g in range(self.new_tokens)]
        return [
            (combine_sequences(setup.forecast[token]), combine_sequences(setup.following[token])) for token in tokens
        ]

    def plan(self, cache_fraction: float, forecasts: bool) -> MemoryPlan:
        """Device memory of a run; `cache_fraction` 0 stands for one slot, the least that works."""
        setup = self.setup
        prompts = [setup.prompts[row] for b in self.batches for row in b.rows]
        size = RequestSize.of(prompts, self.batch_size, self.new_tokens, self.batches_per_block)
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
            scratch_bytes=stages.form.scratch_bytes(stages.layout),
        )
        more = len(self.batches) - self.batches_per_block
        cache = setup.predictor.cache_nbytes(self.batch_size, size.tokens + size.new_tokens) if forecasts else 0
        if self.phase == "prefill":
            # a forecast keeps its cache to the end of the window; the next block waits embedded, its KV caches empty
            waits = min(more, self.batches_per_block) if forecasts else 0
            levels = 0 if setup.config.vision is None else setup.config.vision.feature_levels
            width = setup.config.text.hidden_size * np.dtype(stages.dtype).itemsize
            waiting = waits * self.batch_size * size.tokens * width * (1 + levels)
            return dataclasses.replace(
                plan,
                kv_bytes=plan.kv_bytes + waits * plan.kv_bytes // self.batches_per_block,
                predictor_bytes=plan.predictor_bytes + more * cache,
                workspace_bytes=plan.workspace_bytes + waiting,
            )
        # all batches of a decode window hold their caches from the beginning
        return dataclasses.replace(
            plan,
            kv_bytes=plan.kv_bytes * len(self.batches) // self.batches_per_block,
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
            for members, horizon in self._forecast_ahead(session, forecasters):
                _finish(session, members, horizon)
            return
        active = np.ones(self.batch_size, bool)
        for block, states, forecaster in zip(self.blocks, self._by_block(started), forecasters, strict=True):
            tokens = [self.setup.recording.tokens[b.rows] for b in block]  # each [B, G]
            session.begin_batch()
            for step in range(self.new_tokens):
                inputs = [np.ascontiguousarray(tokens_BxG[:, step : step + 1]) for tokens_BxG in tokens]
                members = [
                    Member.decode(sequences, session.stages.embed(read, None, None), active)
                    for sequences, read in zip(states, inputs, strict=True)
                ]
                ends = [step + 1 == self.new_tokens] * len(members)
                _finish(session, members, forecaster.horizon(members, ends))

    def _forecast_ahead(
        self, session: InferenceSession, forecasters: Sequence[Forecaster]
    ) -> Iterator[tuple[list[Member], np.ndarray | None]]:
        """Each block of prompts with its horizon. The predictor runs one block before the model does, so that the cache
        knows what waits in the queue."""
        waiting: tuple[list[Member], np.ndarray] | None = None
        for block, forecaster in zip(self.blocks, forecasters, strict=True):
            members = []
            for b in block:
                x, deepstack = session.embed(b.batch)
                members.append(Member.prefill(b.batch, session.start(b.batch, self.new_tokens), x, deepstack))
            horizon = forecaster.horizon(members, [True] * len(members))
            if horizon is None or isinstance(forecaster, TrueForecast):
                yield members, horizon
                continue
            if waiting is not None:
                before, own = waiting
                yield before, join_horizon(own[0], [], [horizon[0]], ending=1)
            waiting = members, horizon
        if waiting is not None:
            yield waiting


def _finish(session: InferenceSession, members: list[Member], horizon: np.ndarray | None) -> None:
    """A super-step, and the logits behind it."""
    for member, hidden in zip(members, session.super_step(members, horizon), strict=True):
        session.last_logits(hidden, member.lengths)


def make_window(setup: Setup, phase: str, batch_size: int, num_batches: int, new_tokens: int) -> Window:
    """A window over the first sequences of the recording, again from the beginning when they run out."""
    count = len(setup.prompts)
    batches = []
    for n in range(num_batches):
        rows = np.arange(n * batch_size, (n + 1) * batch_size) % count
        batches.append(WindowBatch(rows, pad_prompts(setup.config, [setup.prompts[row] for row in rows], batch_size)))
    return Window(setup, phase, batch_size, batches, new_tokens)


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
