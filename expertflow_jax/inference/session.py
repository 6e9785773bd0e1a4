"""Steps batches through the layers while the expert cache engine moves experts. (DESIGN sections 2, 6, 6b and 7.)

A *super-step* takes one step of every batch of a *block*: each of its members is a batch, at a phase and of a shape of
its own, and the block's experts travel once for all of them (see `layers.py`). A step of one batch is a block of one.
Axes: B sequences, T new tokens, L MoE layers, E experts, K top-k, V vocabulary.
"""

import functools
import weakref
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int

from expertflow_jax.errors import NumericError
from expertflow_jax.inference.layers import Layers, Look
from expertflow_jax.inference.members import Member, Sequences, StepRecord
from expertflow_jax.inference.stages import Stages
from expertflow_jax.offload.clock import Clock
from expertflow_jax.offload.engine import ExpertCacheEngine
from expertflow_jax.offload.misses import MissPolicy
from expertflow_jax.offload.misses.losses import Losses
from expertflow_jax.processing.batching import PromptBatch, bucket
from expertflow_jax.simulation.costs import ComputeCosts


class _Past(NamedTuple):
    """What a member was given, to run it once more: it writes the same keys and values to the same places.

    References are weak where memory hangs on them: neither a KV cache nor what comes out lives longer for it.
    """

    hidden: weakref.ref[jax.Array]  # what came out, [B, T, D]
    sequences: weakref.ref[Sequences]
    empty: Callable[[], Sequences]
    phase: str
    x: jax.Array  # [B, T, D]
    positions: np.ndarray  # int32 [3, B, T]
    lengths: np.ndarray  # int32 [B]
    visual: tuple[jax.Array, np.ndarray | None] | None

    def member(self) -> Member:
        """The same part again."""
        sequences = self.sequences()
        if sequences is None:  # nobody wants to decode: these were prompts
            sequences = self.empty()
        else:
            sequences.lengths = sequences.lengths - self.lengths
        return Member(self.phase, sequences, self.x, self.positions, self.lengths, self.visual)


class InferenceSession:
    """Runs prefill and decode steps of one model through one engine."""

    _past: Sequence[_Past] = ()  # of the latest super-step
    _batches = 0  # that have been started
    _super_steps = 0

    def __init__(
        self,
        stages: Stages,
        engine: ExpertCacheEngine,
        miss_policy: MissPolicy,
        costs: ComputeCosts | None = None,
        record_speculative: bool = False,
        copies: Stages | None = None,
    ):
        """
        Args:
          stages: compiled stages with the dense parameters.
          engine: serves experts by MoE layer index.
          miss_policy: `wait` (lossless), or a lossy one.
          costs: seconds that each stage takes on the virtual clock; None under the real clock.
          record_speculative: also record what the next layer's router says of this layer's hidden state.
          copies: stages that run quantised copies of the experts, where the engine has such.
        """
        self.stages = stages
        self.engine = engine
        self.miss_policy = miss_policy
        self.costs = costs
        self.records: list[StepRecord] | None = None  # of every member of every super-step, where a list is put here
        self.record_speculative = record_speculative
        self.samples_memory = True  # takes milliseconds: off where a run is timed
        self.peak_device_bytes = 0  # largest sum of what lives on the device, sampled once per shape of super-step
        self._sampled: set[tuple[tuple[int, ...], ...]] = set()
        self._layers = Layers(stages, engine, miss_policy, costs, copies)

    @property
    def clock(self) -> Clock:
        """The engine's."""
        return self.engine.clock

    @property
    def losses(self) -> Losses:
        """What the miss policy has changed so far."""
        return self._layers.losses

    def embed(self, batch: PromptBatch) -> tuple[jax.Array, jax.Array | None]:
        """Input embeddings with images merged in [B, T, D], and DeepStack features (None without images)."""
        x, deepstack = self.stages.embed_prompts(batch)
        if batch.pixel_values is not None:
            self._spend("vision_seconds", len(batch.pixel_values) * batch.pixel_values.shape[1])
        return x, deepstack

    def start(self, batch: PromptBatch, max_new_tokens: int) -> Sequences:
        """An empty KV cache with room for the prompts and `max_new_tokens` more."""
        text = self.stages.config.text
        room = bucket(batch.input_ids.shape[1] + max_new_tokens)
        size, rest = batch.input_ids.shape[0], (text.num_key_value_heads, text.head_dim)
        shapes = [(size, room if cached else 0, *rest) for cached in text.cached_layers]
        if max_new_tokens > 1:
            self._prepare_decoding(size)
        self._batches += 1
        visits = batch.visits(text)
        phases = None if visits is None else {"prefill": visits, "decode": _of_last(visits, batch.lengths)}
        return _no_tokens(shapes, self.stages.dtype, batch.next_position, self._batches, phases)

    def _prepare_decoding(self, batch_size: int) -> None:
        """Decoding goes on for many steps, and a new group would hold up each in turn. A prefill is one step: what it
        needs is compiled as it comes, which is less than all that it might have needed."""
        if not self._layers.at_once(batch_size):
            lossless = self.miss_policy.lossless
            self.stages.precompile(batch_size, [1], memory=self.engine.pool.memory, as_chosen=lossless)

    def begin_batch(self) -> None:
        """Another batch than before runs from here on; a prefill says so itself."""
        self.engine.begin_batch()

    def prefill(
        self,
        batch: PromptBatch,
        sequences: Sequences,
        x: jax.Array,
        deepstack: jax.Array | None,
        horizon: np.ndarray | None,
    ) -> jax.Array:
        """Processes the prompts of one batch; returns final hidden states [B, T, D] (see `last_logits`)."""
        return self.super_step([Member.prefill(batch, sequences, x, deepstack)], horizon)[0]

    def decode(self, sequences: Sequences, x: jax.Array, active: np.ndarray, horizon: np.ndarray | None) -> jax.Array:
        """One token for each active sequence of one batch: x [B, 1, D] -> hidden states [B, 1, D]."""
        return self.super_step([Member.decode(sequences, x, active)], horizon)[0]

    def super_step(
        self, members: Sequence[Member], horizon: Float[np.ndarray, "H L E"] | None
    ) -> list[Float[jax.Array, "B T D"]]:
        """One step of every member; returns the final hidden states of each (see `last_logits`).

        What a step chose is recorded and counted by the time its logits are there, or the next one begins.

        Args:
          members: each of another batch, in any order, at any phase.
          horizon: forecast of what all of them will use, see `ExpertCacheEngine.begin_step`.
        """
        if any(member.phase == "prefill" for member in members):
            self.begin_batch()
        self._settle()
        self._super_steps += 1
        records = [self._new_record(member) for member in members]
        sample = self._new_shape(members)
        try:
            self.engine.begin_step(horizon)
            hidden, peak = self._layers.run(members, records, sample=sample)
        finally:
            self.engine.end_step()  # also when it was given up: any thread may begin the next one
        self.peak_device_bytes = max(self.peak_device_bytes, peak)
        for member in members:
            member.advance()
        self._past = [_past(member, out) for member, out in zip(members, hidden, strict=True)]
        if self.records is not None:
            self.records += records
        return hidden

    def rest(self) -> None:
        """No batch runs: what the latest super-step left to be looked at again goes."""
        self._past = ()

    def last_logits(self, hidden: jax.Array, lengths: Int[np.ndarray, "B"]) -> Float[np.ndarray, "B V"]:
        """Logits float32 after the last valid token of each sequence; those of length 0 are meaningless.

        Raises:
          NumericError: a sequence's are NaN or infinite.
        """
        judged = _with_finite(self.device_logits(hidden, lengths))
        self._settle()
        logits_BxV, finite_B = jax.device_get(judged)
        self.check_numbers(hidden, finite_B | (lengths == 0))
        return logits_BxV

    def _settle(self) -> None:
        self._layers.settle()

    def device_logits(self, hidden: jax.Array, lengths: Int[np.ndarray, "B"]) -> jax.Array:
        """The same left on the device, and not looked at."""
        logits_BxV = self.stages.head(_take_last(hidden, np.maximum(lengths - 1, 0)))
        self._spend("head_seconds", len(lengths))
        return logits_BxV

    def check_numbers(self, hidden: jax.Array, finite: Bool[np.ndarray, "B"]) -> None:
        """Raises NumericError if logits of the latest super-step are NaN or infinite: `finite` is false for a sequence
        whose are. The member that `hidden` came out of runs once more to find the layer where they arise."""
        if finite.all():
            return
        names: list[str] = []

        def look(name: str, x: jax.Array, lengths: np.ndarray) -> None:
            inside_BxT = np.arange(x.shape[1]) < lengths[:, None]
            with np.errstate(over="ignore", invalid="ignore"):  # a norm takes squares
                squares_NxD = np.square(np.asarray(x, np.float32)[inside_BxT])
                if not names and not np.isfinite(squares_NxD.mean(axis=1)).all():
                    names.append(name)

        for past in self._past:
            if past.hidden() is hidden:
                look("the input embeddings", past.x, past.lengths)
                self._look_again(past.member(), look)
        numbers = ", ".join(str(row) for row in np.flatnonzero(~finite)[:8])
        raise NumericError(
            f"the model's logits are NaN or infinite (sequence {numbers} of the batch); they arise first in "
            f"{names[0] if names else 'the head'}: look for a damaged checkpoint, or load with dtype 'float32' or "
            "without quantised experts"
        )

    def _look_again(self, member: Member, look: Look) -> None:
        """Runs a member's step for `look` alone, off the clock."""
        try:
            self.engine.begin_step(None)
            layers = Layers(self.stages, self.engine, self.miss_policy, None, self._layers.copies)
            layers.run([member], [self._new_record(member)], look=look)
        finally:
            self.engine.end_step()

    def _new_shape(self, members: Sequence[Member]) -> bool:
        """Whether no super-step of these shapes has run yet: asking the device what it holds costs milliseconds, and
        super-steps of the same shapes hold the same."""
        shapes = tuple(sorted(member.shape for member in members))
        new = self.samples_memory and shapes not in self._sampled
        self._sampled.add(shapes)
        return new

    def _new_record(self, member: Member) -> StepRecord:
        batch, length, _ = member.shape
        num_layers, num_experts = self.engine.store.num_layers, self.engine.store.num_experts
        top_k = self.stages.config.text.num_experts_per_tok
        speculative = None
        if self.record_speculative:
            speculative = np.zeros((batch, length, num_layers, num_experts), np.float32)
        return StepRecord(
            member.phase,
            self._super_steps,
            member.sequences.batch,
            member.lengths.copy(),
            np.full((batch, length, num_layers, top_k), -1, np.int32),
            np.zeros((num_layers, num_experts), bool),
            speculative,
        )

    def _spend(self, cost: str, amount: object) -> None:
        if self.costs is not None:
            self._layers.spend(cost, amount)


def _no_tokens(
    shapes: Sequence[tuple[int, ...]],
    dtype: jax.typing.DTypeLike,
    next_position: np.ndarray,
    batch: int,
    visits: dict[str, np.ndarray] | None,
) -> Sequences:
    """The state of a batch that has read nothing: `shapes` [B, S, Hkv, Dh] of each layer's keys and values."""
    kv = [(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype)) for shape in shapes]
    empty = functools.partial(_no_tokens, shapes, dtype, next_position, batch, visits)
    return Sequences(kv, np.zeros(len(next_position), np.int32), next_position.copy(), batch, visits, empty)


def _of_last(visits: Bool[np.ndarray, "B T L"], lengths: Int[np.ndarray, "B"]) -> Bool[np.ndarray, "B 1 L"]:
    """Those of each prompt's last token, which answers go on with."""
    return visits[np.arange(len(lengths)), np.maximum(lengths - 1, 0)][:, None]


def _past(member: Member, hidden: jax.Array) -> _Past:
    sequences = member.sequences
    return _Past(
        weakref.ref(hidden),
        weakref.ref(sequences),
        sequences.empty,
        member.phase,
        member.x,
        member.positions,
        member.lengths,
        member.visual,
    )


@jax.jit
def _with_finite(logits: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Logits [B, V] and whether all of a row's are finite: bool [B]."""
    return logits, jnp.isfinite(logits).all(axis=1)


@jax.jit
def _take_last(hidden: jax.Array, last: jax.Array) -> jax.Array:
    return jnp.take_along_axis(hidden, last[:, None, None], axis=1)[:, 0]
