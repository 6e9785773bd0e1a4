"""The way of a super-step through the layers, which its members go together. (DESIGN sections 6, 6b and 7.)

Per MoE layer: attention and router of every member on the device, one read of what all of them chose by the host, one
request to the engine for the union, and each arriving expert on the rows of every member that chose it. A member keeps
its arrays and its compiled shapes, every row's output lands in its own place of its member's output, and all are added
in one fixed order: neither rounds nor other members change a result.

Where every expert is in a slot there is nothing to wait for: small models decode in one call (`selection.py`), and the
host reads what was chosen when it reads the logits.
Axes: B sequences, T new tokens, N = B * T, L MoE layers, E experts, K top-k, D model width.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from expertflow_jax.inference.device_memory import bytes_in_use
from expertflow_jax.inference.late import Late, late_experts
from expertflow_jax.inference.layer_stages import Attended, Uncombined
from expertflow_jax.inference.members import Member, StepRecord
from expertflow_jax.inference.rows import ExpertRows, expert_rows
from expertflow_jax.inference.stages import Stages
from expertflow_jax.offload.clock import Clock, bookkeeping
from expertflow_jax.offload.engine import ExpertCacheEngine
from expertflow_jax.offload.misses import LayerStep, MissPolicy
from expertflow_jax.offload.misses.losses import Losses
from expertflow_jax.offload.misses.telling import split, tell
from expertflow_jax.simulation.costs import ComputeCosts

Look = Callable[[str, jax.Array, np.ndarray], None]  # (what, its output [B, T, D], lengths int32 [B])


@dataclasses.dataclass
class _Passage:
    """A member on its way: what comes out of the layer before."""

    member: Member
    record: StepRecord
    x: jax.Array | Uncombined  # [B, T, D]
    where: tuple[jax.Array, ...]  # positions int32 [3, B, T], start and lengths int32 [B]
    speculated: jax.Array | None = None  # [B, T, E], where it is to be recorded
    late: Late | None = None  # of the MoE layer before


@dataclasses.dataclass
class _Routed:
    """A member between router and combination of one MoE layer."""

    passage: _Passage
    h: jax.Array  # [B, T, D], the residual stream
    y: jax.Array  # [B, T, D], what experts read
    weights: Any  # [B, T, K]
    probs: jax.Array  # [B, T, E]
    ids: jax.Array  # int32 [B, T, K], the router's choice
    chosen: np.ndarray  # the same
    rows: ExpertRows  # of the experts that run
    ahead: jax.Array | None = None  # [B, T, E], what the next MoE layer's router says of `h`
    out: Any = None  # [N * K + 1, D], outputs of experts
    late: Late | None = None  # what this layer defers


class Layers:
    """Brings the members of a super-step through the layers of one model."""

    def __init__(
        self,
        stages: Stages,
        engine: ExpertCacheEngine,
        miss_policy: MissPolicy,
        costs: ComputeCosts | None,
        copies: Stages | None = None,
    ):
        """Args as `InferenceSession`."""
        self.stages = stages
        self.engine = engine
        self.miss_policy = miss_policy
        self.costs = costs
        self.copies = copies
        self.losses = Losses()
        self._decode_layers = stages.config.text.decode_layers
        self._unread: tuple[StepRecord, list[jax.Array]] | None = None  # ids [B, 1, K] of each MoE layer, on the device

    @property
    def clock(self) -> Clock:
        """The engine's."""
        return self.engine.clock

    def spend(self, cost: str, amount: Any) -> None:
        """Lets the virtual clock pass by what the stage `cost` takes for `amount`."""
        if self.costs is not None:
            self.clock.spend(getattr(self.costs, cost)(amount), "compute")

    def run(
        self,
        members: Sequence[Member],
        records: Sequence[StepRecord],
        *,
        sample: bool = False,
        look: Look | None = None,
    ) -> tuple[list[jax.Array], int]:
        """The members' hidden states [B, T, D] behind the last layer.

        Args:
          members: each of another batch.
          records: one for each, to be filled in.
          sample: whether to ask what lives on the device.
          look: called with the name of every layer, each member's output and `lengths`.

        Returns:
          the hidden states, and the most bytes that lived on the device where a layer's outputs are combined.
        """
        if look is None and len(members) == 1 and self._runs_at_once(members[0], records[0]):
            return [self._decode_at_once(members[0], records[0])], bytes_in_use() if sample else 0
        passages = [_Passage(m, record, m.x, self._where(m)) for m, record in zip(members, records, strict=True)]
        moe_layer = peak = 0
        for layer, is_moe in enumerate(self.stages.is_moe):
            present = [p for p in passages if p.member.phase == "prefill" or self._decode_layers[layer]]
            if present and is_moe:
                peak = max(peak, self._moe_layer(layer, moe_layer, present, sample))
            elif present:
                self._dense_layer(layer, present)
            moe_layer += is_moe
            for passage in present:
                visual = passage.member.visual
                if visual is not None and visual[1] is not None and layer < visual[0].shape[0]:
                    passage.x = self.stages.add_deepstack(self.stages.combined(passage.x), visual[0][layer], visual[1])
                if look is not None:
                    passage.x = self.stages.combined(passage.x)
                    look(f"layer {layer}", passage.x, passage.member.lengths)
        return [self.stages.combined(passage.x) for passage in passages], peak

    def at_once(self, batch_size: int) -> bool:
        """Whether this many sequences are decoded in one call; it would save nothing where stages have stated costs."""
        if self.costs is not None or not self.miss_policy.lossless or not self.engine.pool.holds_all:
            return False
        # Stages that stand in for others, to overhear or overrule their routers, have to be asked layer by layer.
        return isinstance(self.stages, Stages) and self.stages.selects(batch_size)

    def settle(self) -> None:
        """Fills in the record of a step that ran in one call, and counts it: waits for the step."""
        if self._unread is not None:
            record, ids = self._unread
            self._unread = None
            layers = [i for i, layer in enumerate(self.stages.moe_layers) if self._decode_layers[layer]]
            record.expert_ids[:, :, layers] = np.stack(jax.device_get(ids), axis=2)
            for layer in layers:
                chosen = record.expert_ids[:, :, layer]
                record.needed[layer, chosen[chosen >= 0]] = True
            self.engine.count_hits(len(layers), int(np.count_nonzero(record.needed)))

    def _runs_at_once(self, member: Member, record: StepRecord) -> bool:
        return member.phase == "decode" and record.speculative is None and self.at_once(len(member.lengths))

    def _decode_at_once(self, member: Member, record: StepRecord) -> jax.Array:
        sequences, pool = member.sequences, self.engine.pool
        experts_LxE = [pool.layer_buffers(layer) for layer in range(pool.num_layers)]
        sequences.kv, x, ids = self.stages.decode_step(experts_LxE, sequences.kv, member.x, *self._where(member))
        self._unread = record, ids
        return x

    def _where(self, member: Member) -> tuple[jax.Array, ...]:
        return self.stages.locate(member.positions, member.sequences.lengths, member.lengths)

    def _dense_layer(self, layer: int, passages: Sequence[_Passage]) -> None:
        for passage in passages:
            kv = passage.member.sequences.kv  # of each layer
            kv[layer], passage.x = self.stages.dense_layer(layer, passage.x, kv[layer], *passage.where)

    def _moe_layer(self, layer: int, moe_layer: int, passages: Sequence[_Passage], sample: bool) -> int:
        routed = self._route(layer, moe_layer, passages)
        counts_E = np.sum([r.rows.counts for r in routed], axis=0).astype(np.int32)
        quantized_E = None if self.miss_policy.lossless else self._resolve(moe_layer, routed, counts_E)
        for r in routed:
            if r.out is None:
                r.out = self.stages.empty_output(r.rows.order.size // r.chosen.shape[-1], r.chosen.shape[-1])
        wanted = np.flatnonzero(np.any([r.rows.counts for r in routed], axis=0)).astype(np.int32)
        deferred = [r.late for r in routed if r.late is not None]
        put_off = late_experts(deferred) if deferred else None
        for experts, buffers in self.engine.rounds(moe_layer, wanted, counts_E, quantized_E, put_off):
            for stages, positions in self._forms(buffers):
                for r in routed:
                    for places, group in self._groups(r.rows, [experts[p] for p in positions]):
                        chosen = [positions[place] for place in places]
                        named = (r.ids, [experts[p] for p in chosen]) if self.miss_policy.lossless else None
                        r.out = stages.run_experts(r.out, r.y, group, [buffers[p] for p in chosen], named)
            self._observe_next(moe_layer, routed)
            for r in routed:
                rows = [count for count in r.rows.counts[list(experts)].tolist() if count]
                if rows:
                    self.spend("experts_seconds", rows)
        self._observe_next(moe_layer, routed)
        peak = bytes_in_use() if sample else 0
        for r in routed:
            x = Uncombined(r.h, r.out, r.weights)
            # The next layer adds what few rows there are; many would lie beside all that its attention takes.
            r.passage.x = x if r.h.shape[1] == 1 else self.stages.combined(x)
        self._add_late(routed)
        return peak

    def _add_late(self, routed: Sequence[_Routed]) -> None:
        """Runs what the MoE layer before has deferred and adds it; what this one defers takes its place."""
        waiting = [(r.passage, r.passage.late) for r in routed if r.passage.late is not None]
        if waiting:
            experts_n = late_experts([late for _, late in waiting])
            for experts, buffers in self.engine.rounds(waiting[0][1].moe_layer, experts_n, again=True):
                for _, late in waiting:
                    for places, group in self._groups(late.rows, experts):
                        late.out = self.stages.run_experts(late.out, late.y, group, [buffers[p] for p in places])
                    if rows := [count for count in late.rows.counts[list(experts)].tolist() if count]:
                        self.spend("experts_seconds", rows)
        for passage, late in waiting:
            x = self.stages.combined(passage.x)
            passage.x = self.stages.combined(Uncombined(x, late.out, late.weights))
        for r in routed:
            r.passage.late = r.late

    def _route(self, layer: int, moe_layer: int, passages: Sequence[_Passage]) -> list[_Routed]:
        """Attention and router of all members, and one read of what they chose."""
        attended: list[Attended] = []
        for passage in passages:
            kv = passage.member.sequences.kv  # of each layer
            attended.append(self.stages.attend_and_route(layer, passage.x, kv[layer], *passage.where))
            kv[layer] = attended[-1].kv
        choices = jax.device_get([a.ids for a in attended])
        routed = []
        for passage, (_, out, h, y, ids, weights, probs), chosen in zip(passages, attended, choices, strict=True):
            self.spend("attend_seconds", int(passage.member.lengths.sum()))
            record = passage.record
            record.expert_ids[:, :, moe_layer] = chosen
            if record.speculative is not None:
                speculated = passage.speculated
                record.speculative[:, :, moe_layer] = 0 if speculated is None else np.asarray(speculated)
                passage.speculated = self._next_router(layer, h)
            rows = self._sorted(chosen.reshape(-1, chosen.shape[-1]))
            np.greater(rows.counts, 0, out=record.needed[moe_layer])
            r = _Routed(passage, h, y, weights, probs, ids, chosen, rows, out=out)
            if self.engine.watches_hidden and (ahead := self._next_router(layer, h)) is not None:
                r.ahead = ahead
                self.spend("route_seconds", int((chosen[:, :, 0] >= 0).sum()))
            routed.append(r)
        return routed

    def _forms(self, buffers: Sequence[Any]) -> list[tuple[Stages, Sequence[int]]]:
        """Positions in a round of whole experts and of quantised copies, each with the stages that run them."""
        if self.copies is None:
            return [(self.stages, range(len(buffers)))]
        shapes = self.copies.layout.part_shapes
        is_copy = [tuple(part.shape for part in parts) == shapes for parts in buffers]
        forms = [(self.stages, False), (self.copies, True)]
        return [(stages, [p for p, copy in enumerate(is_copy) if copy == form]) for stages, form in forms]

    def _resolve(self, moe_layer: int, routed: Sequence[_Routed], counts_E: np.ndarray) -> np.ndarray | None:
        """Has the miss policy say for all members together what runs, and whether compute waits for it.

        Returns:
          bool [E], experts of which a quantised copy will do; None: of none.
        """
        step = _layer_step(moe_layer, self.engine.store.num_layers, routed, self.engine.usable(moe_layer))
        decision = self.miss_policy.decide(step)
        self.losses.add(step, decision)
        if decision.as_chosen:
            return None
        start, wanted_E = 0, np.zeros(len(counts_E), bool)
        for r in routed:
            part = slice(start, start + r.chosen.shape[0] * r.chosen.shape[1])
            ids_NxK, late_NxK = split(decision.expert_ids[part], decision.deferred)
            r.rows, r.weights = self._sorted(ids_NxK), decision.weights[part].reshape(r.chosen.shape)
            if late_NxK is not None:
                out = self.stages.empty_output(*late_NxK.shape)
                r.late = Late(moe_layer, r.y, self._sorted(late_NxK), r.weights, out)
            wanted_E |= r.rows.counts > 0
            start = part.stop
        tell(self.engine, self.miss_policy, step, decision, counts_E, wanted_E)
        return decision.quantized

    @bookkeeping
    def _sorted(self, ids_NxK: np.ndarray) -> ExpertRows:
        return expert_rows(ids_NxK, self.engine.store.num_experts, self.engine.form)

    @bookkeeping
    def _groups(self, rows: ExpertRows, experts: Sequence[int]) -> list[tuple[tuple[int, ...], np.ndarray]]:
        return list(rows.groups(experts))

    def _next_router(self, layer: int, h: jax.Array) -> jax.Array | None:
        following = [n for n in self.stages.moe_layers if n > layer]
        return self.stages.next_router(following[0], h) if following else None

    def _observe_next(self, moe_layer: int, routed: Sequence[_Routed]) -> None:
        """Tells the engine once what the next MoE layer's router says of these hidden states.

        After the running layer has asked, so that its misses travel first, and after its first experts have been
        dispatched, so that reading the answer holds up nobody.
        """
        told = [(np.asarray(r.ahead)[r.chosen[:, :, 0] >= 0], r) for r in routed if r.ahead is not None]  # [n, E] each
        if told:
            self.engine.observe_hidden(moe_layer + 1, np.concatenate([probs for probs, _ in told]), _top_k(routed))
        for r in routed:
            r.ahead = None


def _layer_step(moe_layer: int, num_layers: int, routed: Sequence[_Routed], usable_E: np.ndarray) -> LayerStep:
    """What the routers of all members want, one member's tokens after the other's."""
    top_k, num_experts = _top_k(routed), len(usable_E)

    def joined(parts: Sequence[Any], width: int) -> np.ndarray:  # [N, width] of all members
        return np.concatenate([np.asarray(part).reshape(-1, width) for part in parts])

    sizes = [r.chosen.shape[:2] for r in routed]
    members = [r.passage.member for r in routed]
    images = [np.zeros(size, bool) if m.image is None else m.image for m, size in zip(members, sizes, strict=True)]
    prefill = [np.full(size, m.phase == "prefill") for m, size in zip(members, sizes, strict=True)]
    return LayerStep(
        moe_layer,
        num_layers,
        joined([r.chosen for r in routed], top_k),
        joined([r.weights for r in routed], top_k),
        joined([r.probs for r in routed], num_experts),
        usable_E,
        joined(images, 1)[:, 0],
        joined(prefill, 1)[:, 0],
    )


def _top_k(routed: Sequence[_Routed]) -> int:
    return routed[0].chosen.shape[-1]
