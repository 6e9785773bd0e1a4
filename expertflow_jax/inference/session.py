"""Steps a batch through the layers while the expert cache engine moves experts. (DESIGN sections 2, 6 and 7.)

Per MoE layer: attention and router on the device, one small read of the chosen experts by the host, then the
experts in rounds: those already in slots first, the missing ones as they arrive. Every row's output lands in its
own place and is added in one fixed order, so rounds never change a result. Axes: B sequences, T new tokens,
S cache length, L MoE layers, E experts, K top-k, N = B * T tokens of the step, V vocabulary.
"""

import dataclasses
import functools
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int

from expertflow_jax.errors import NumericError
from expertflow_jax.inference.device_memory import bytes_in_use
from expertflow_jax.inference.rows import ExpertRows, expert_rows
from expertflow_jax.inference.stages import Stages
from expertflow_jax.offload.clock import Clock, bookkeeping
from expertflow_jax.offload.engine import ExpertCacheEngine
from expertflow_jax.offload.misses import MissPolicy
from expertflow_jax.processing.batching import PromptBatch, bucket
from expertflow_jax.simulation.costs import ComputeCosts


@dataclasses.dataclass
class StepRecord:
    """What one step chose and asked for."""

    phase: str  # "prefill" or "decode"
    lengths: np.ndarray  # int32 [B], valid new tokens
    expert_ids: np.ndarray  # int32 [B, T, L, K], the router's choice, -1 on padding
    needed: np.ndarray  # bool [L, E], experts that the router asked for
    speculative: np.ndarray | None  # float32 [B, T, L, E], next-router probabilities where recorded


@dataclasses.dataclass
class Sequences:
    """The running state of a batch: KV cache and how far each sequence has come."""

    kv: list[tuple[jax.Array, jax.Array]]  # per layer, each [B, S, Hkv, Dh]
    lengths: np.ndarray  # int32 [B], tokens in the cache
    next_position: np.ndarray  # int32 [B], M-RoPE position of the next token

    @property
    def nbytes(self) -> int:
        """Device bytes of the KV cache."""
        return sum(k.nbytes + v.nbytes for k, v in self.kv)


@dataclasses.dataclass(frozen=True)
class _Step:
    """What a step was given, to run it once more: it writes the same keys and values to the same places."""

    phase: str
    sequences: weakref.ref[Sequences]  # weak, so that no KV cache lives longer than its batch
    x: jax.Array  # [B, T, D]
    positions: np.ndarray  # int32 [3, B, T]
    lengths: np.ndarray  # int32 [B]
    visual: tuple[jax.Array, np.ndarray | None] | None


class InferenceSession:
    """Runs prefill and decode steps of one model through one engine."""

    _latest: _Step | None = None

    def __init__(
        self,
        stages: Stages,
        engine: ExpertCacheEngine,
        miss_policy: MissPolicy,
        costs: ComputeCosts | None = None,
        record_speculative: bool = False,
    ):
        """
        Args:
          stages: compiled stages with the dense parameters.
          engine: serves experts by MoE layer index.
          miss_policy: `wait` (lossless), or a lossy one.
          costs: seconds that each stage takes on the virtual clock; None under the real clock.
          record_speculative: also record what the next layer's router says of this layer's hidden state.
        """
        self.stages = stages
        self.engine = engine
        self.miss_policy = miss_policy
        self.costs = costs
        self.records: list[StepRecord] | None = None
        self.record_speculative = record_speculative
        self.samples_memory = True  # takes milliseconds: off where a run is timed
        self.peak_device_bytes = 0  # largest sum of what lives on the device, sampled once per shape of step
        self._sampled: set[tuple[int, ...]] = set()

    @property
    def clock(self) -> Clock:
        """The engine's."""
        return self.engine.clock

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
            # Decoding goes on for many steps, and a new group would hold up each in turn. A prefill is one step: what
            # it needs is compiled as it comes, which is less than all that it might have needed.
            self.stages.precompile(size, [1])
        self._empty = functools.partial(self._no_tokens, shapes, batch.next_position)
        return self._empty()

    def _no_tokens(self, shapes: Sequence[tuple[int, ...]], next_position: np.ndarray) -> Sequences:
        kv = [(jnp.zeros(shape, self.stages.dtype), jnp.zeros(shape, self.stages.dtype)) for shape in shapes]
        return Sequences(kv, np.zeros(len(next_position), np.int32), next_position.copy())

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
        """Processes the prompts; returns final hidden states [B, T, D] (see `last_logits`)."""
        self.begin_batch()
        visual = None if deepstack is None else (deepstack, batch.image_index)
        return self._step("prefill", sequences, x, batch.positions, batch.lengths, horizon, visual)

    def decode(self, sequences: Sequences, x: jax.Array, active: np.ndarray, horizon: np.ndarray | None) -> jax.Array:
        """One token for each active sequence: x [B, 1, D] -> hidden states [B, 1, D]."""
        positions = np.broadcast_to(sequences.next_position[None, :, None], (3, len(active), 1))
        lengths = active.astype(np.int32)
        hidden = self._step("decode", sequences, x, np.ascontiguousarray(positions), lengths, horizon, None)
        sequences.next_position = sequences.next_position + lengths
        return hidden

    def last_logits(self, hidden: jax.Array, lengths: Int[np.ndarray, "B"]) -> Float[np.ndarray, "B V"]:
        """Logits float32 after the last valid token of each sequence; those of length 0 are meaningless.

        Raises:
          NumericError: a sequence's are NaN or infinite.
        """
        logits_BxV, finite_B = jax.device_get(_with_finite(self.device_logits(hidden, lengths)))
        self.check_numbers(finite_B | (lengths == 0))
        return logits_BxV

    def device_logits(self, hidden: jax.Array, lengths: Int[np.ndarray, "B"]) -> jax.Array:
        """The same left on the device, and not looked at."""
        logits_BxV = self.stages.head(_take_last(hidden, np.maximum(lengths - 1, 0)))
        self._spend("head_seconds", len(lengths))
        return logits_BxV

    def check_numbers(self, finite: Bool[np.ndarray, "B"]) -> None:
        """Raises NumericError if logits of the latest step are NaN or infinite: `finite` is false for a sequence whose
        are. The step runs once more to find the layer where they arise."""
        if finite.all():
            return
        names: list[str] = []

        def look(name: str, x: jax.Array, lengths: np.ndarray) -> None:
            inside_BxT = np.arange(x.shape[1]) < lengths[:, None]
            if not names and not np.isfinite(np.asarray(x, np.float32)[inside_BxT]).all():
                names.append(name)

        if (step := self._latest) is not None:
            sequences = step.sequences()
            if sequences is None:  # nobody wants to decode: these were prompts
                sequences = self._empty()
            else:
                sequences.lengths = sequences.lengths - step.lengths
            self.records = self.costs = None
            look("the input embeddings", step.x, step.lengths)
            self._step(step.phase, sequences, step.x, step.positions, step.lengths, None, step.visual, look)
        numbers = ", ".join(str(row) for row in np.flatnonzero(~finite)[:8])
        raise NumericError(
            f"the model's logits are NaN or infinite (sequence {numbers} of the batch); they arise first in "
            f"{names[0] if names else 'the head'}: look for a damaged checkpoint, or load with dtype 'float32' or "
            "without quantised experts"
        )

    def _step(self, *step: Any) -> jax.Array:
        try:
            return self._layers(*step)
        finally:
            self.engine.end_step()  # also when it was given up: any thread may begin the next one

    def _layers(
        self,
        phase: str,
        sequences: Sequences,
        x: jax.Array,
        positions: np.ndarray,
        lengths: np.ndarray,
        horizon: np.ndarray | None,
        visual: tuple[jax.Array, np.ndarray | None] | None,
        look: Callable[[str, jax.Array, np.ndarray], None] | None = None,
    ) -> jax.Array:
        """Runs all layers; `look` is called with the name of each, its output [B, T, D] and `lengths`."""
        self._latest = _Step(phase, weakref.ref(sequences), x, positions, lengths, visual)
        record = self._new_record(phase, x.shape, lengths)
        where = (positions, sequences.lengths, lengths)
        speculated = None
        moe_layer = 0
        sample = self._new_shape(x.shape[:2], sequences.kv[-1][0].shape[1])
        self.engine.begin_step(horizon)
        runs = self.stages.config.text.decode_layers
        for layer, is_moe in enumerate(self.stages.is_moe):
            if phase == "decode" and not runs[layer]:
                moe_layer += is_moe
                continue
            if not is_moe:
                x, *kv = self.stages.dense_layer(layer, x, sequences.kv[layer], *where)
                sequences.kv[layer] = tuple(kv)
            else:
                h, y, ids, weights, probs, *kv = self.stages.attend_and_route(layer, x, sequences.kv[layer], *where)
                sequences.kv[layer] = tuple(kv)
                chosen = np.asarray(ids)
                self._spend("attend_seconds", int(lengths.sum()))
                record.expert_ids[:, :, moe_layer] = chosen
                if record.speculative is not None:
                    record.speculative[:, :, moe_layer] = 0 if speculated is None else np.asarray(speculated)
                    speculated = self._speculate(layer, h)
                x = self._experts(moe_layer, layer, h, y, chosen, weights, probs, record.needed[moe_layer], sample)
                moe_layer += 1
            if visual is not None and visual[1] is not None and layer < visual[0].shape[0]:
                x = self.stages.add_deepstack(x, visual[0][layer], visual[1])
            if look is not None:
                look(f"layer {layer}", x, lengths)
        sequences.lengths = sequences.lengths + lengths
        if self.records is not None:
            self.records.append(record)
        return x

    def _experts(
        self,
        layer: int,
        decoder_layer: int,
        h: jax.Array,
        y: jax.Array,
        chosen: np.ndarray,
        weights: jax.Array,
        probs: jax.Array,
        needed: np.ndarray,
        sample: bool,
    ) -> jax.Array:
        batch, length, top_k = chosen.shape
        tokens = batch * length
        ids = chosen.reshape(tokens, top_k)
        rows = self._sorted(ids)
        counts_E = rows.counts.astype(np.int32)
        np.greater(counts_E, 0, out=needed)
        mix: Any = weights
        ahead = self._speculate(decoder_layer, h) if self.engine.watches_hidden else None
        if ahead is not None:
            self._spend("route_seconds", int((ids[:, 0] >= 0).sum()))
        if not self.miss_policy.lossless:
            usable = self.engine.usable(layer)
            self.engine.note_lossy(layer, np.flatnonzero(needed).astype(np.int32), usable, counts_E)
            ids, mix = self.miss_policy.resolve(
                ids, np.asarray(mix).reshape(ids.shape), np.asarray(probs).reshape(tokens, -1), usable
            )
            rows = self._sorted(ids)
        out = self.stages.empty_output(tokens, top_k)
        for experts, buffers in self.engine.rounds(layer, rows.needed, counts_E):
            for positions, group in self._groups(rows, experts):
                out = self.stages.run_experts(out, y, group, [buffers[p] for p in positions])
            if ahead is not None:
                self._observe_next(layer, ahead, chosen)
                ahead = None
            self._spend("experts_seconds", [int(rows.counts[e]) for e in experts])
        if ahead is not None:
            self._observe_next(layer, ahead, chosen)
        if sample:
            self.peak_device_bytes = max(self.peak_device_bytes, bytes_in_use())
        return self.stages.combine(h, out, mix)

    @bookkeeping
    def _sorted(self, ids: np.ndarray) -> ExpertRows:
        return expert_rows(ids, self.engine.store.num_experts)

    @bookkeeping
    def _groups(self, rows: ExpertRows, experts: Sequence[int]) -> list[tuple[tuple[int, ...], np.ndarray]]:
        return list(rows.groups(experts))

    def _new_shape(self, shape: tuple[int, ...], room: int) -> bool:
        """Whether no step of these shapes has run yet: asking the device what it holds costs milliseconds, and
        steps of one shape hold the same."""
        new = self.samples_memory and (*shape, room) not in self._sampled
        self._sampled.add((*shape, room))
        return new

    def _new_record(self, phase: str, shape: tuple[int, ...], lengths: np.ndarray) -> StepRecord:
        batch, length, _ = shape
        num_layers, num_experts = self.engine.store.num_layers, self.engine.store.num_experts
        top_k = self.stages.config.text.num_experts_per_tok
        speculative = None
        if self.record_speculative:
            speculative = np.zeros((batch, length, num_layers, num_experts), np.float32)
        return StepRecord(
            phase,
            lengths.copy(),
            np.full((batch, length, num_layers, top_k), -1, np.int32),
            np.zeros((num_layers, num_experts), bool),
            speculative,
        )

    def _speculate(self, layer: int, h: jax.Array) -> jax.Array | None:
        following = [n for n in self.stages.moe_layers if n > layer]
        return self.stages.next_router(following[0], h) if following else None

    def _observe_next(self, layer: int, ahead: jax.Array, chosen: np.ndarray) -> None:
        """Tells the engine once what the next MoE layer's router says of this hidden state: probabilities [B, T, E].

        After the running layer has asked, so that its misses travel first, and after its first experts have been
        dispatched, so that reading the answer holds up nobody.
        """
        valid_BT = chosen[:, :, 0] >= 0
        self.engine.observe_hidden(layer + 1, np.asarray(ahead)[valid_BT], chosen.shape[-1])

    def _spend(self, cost: str, amount: Any) -> None:
        if self.costs is not None:
            self.engine.clock.spend(getattr(self.costs, cost)(amount), "compute")


@jax.jit
def _with_finite(logits: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Logits [B, V] and whether all of a row's are finite: bool [B]."""
    return logits, jnp.isfinite(logits).all(axis=1)


@jax.jit
def _take_last(hidden: jax.Array, last: jax.Array) -> jax.Array:
    return jnp.take_along_axis(hidden, last[:, None, None], axis=1)[:, 0]
