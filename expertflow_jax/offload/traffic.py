"""The engine's side of the link: what travels next, into which slot, and what an arrival means. (See engine.py.)

The link asks whenever it is free: urgent misses first, in the policy's order, then the policy's prefetches, then what
lossy steps missed. Under a real clock its own thread asks, with the engine's lock held except for `load`.
Axes: S slots. A key is layer * E + expert.
"""

import collections
import threading
from collections.abc import Sequence

import jax
import numpy as np
from jaxtyping import Int

from expertflow_jax.models.experts import Parts
from expertflow_jax.offload.clock import Clock
from expertflow_jax.offload.counts import Counts
from expertflow_jax.offload.foresight import Foresight
from expertflow_jax.offload.link import LinkSpec, Transfer
from expertflow_jax.offload.policies.base import CachePolicy
from expertflow_jax.offload.slots import READY, SlotPool
from expertflow_jax.offload.store import HostTier


class Traffic:
    """A `TransferSource`: queues, and the slots that transfers take.

    Attributes:
      urgent: missing keys of the running layer-step in the policy's order, and what it wants to come with them.
      needed: keys asked for in this layer-step that were not there at once and have not been served.
      here: those of them that have arrived.
      busy: slots handed to computations that may still run: no victims for prefetches.
      put_off: keys that an earlier layer-step of this step may still wait for, behind those of the running one.
      tick: layer-steps so far, for `SlotPool.last_used`.
      started: transfers since the cache began.
    """

    def __init__(
        self,
        store: HostTier,
        pool: SlotPool,
        policy: CachePolicy,
        clock: Clock,
        disk: LinkSpec,
        changed: threading.Condition,
        counts: Counts,
        foresight: Foresight,
        copies: HostTier | None = None,
    ):
        """
        Args:
          disk: from files to host memory; counts on the virtual clock alone.
          changed: the engine's, around its lock.
          copies: the same experts, quantised; None: nothing is served from such.
        """
        self.urgent: collections.deque[int] = collections.deque()
        self.needed: set[int] = set()
        self.here: list[int] = []
        self.busy: list[int] = []
        self.put_off: dict[int, None] = {}  # a queue without repeats
        self.tick = self.started = 0
        self._background: dict[int, None] = {}  # a queue without repeats
        self._store, self._pool, self._policy = store, pool, policy
        self._clock, self._disk, self._changed = clock, disk, changed
        self._counts, self._foresight = counts, foresight
        self._copies = copies
        self._quantized: set[int] = set()  # keys of the running layer-step that may come quantised

    def forget(self) -> None:
        """The cache starts anew; nothing is under way."""
        for queue in (self.urgent, self.needed, self.here, self.busy, self.put_off, self._background):
            queue.clear()  # type: ignore[attr-defined]
        self.tick = self.started = 0

    def fill(self, keys: Int[np.ndarray, "S"]) -> None:
        """Puts experts into the empty slots without the link: the key of each slot, -1 for none.

        Raises:
          RuntimeError: the policy wants an expert outside its home, or one twice.
        """
        pool = self._pool
        for slot, key in enumerate(keys.tolist()):
            if key < 0:
                continue
            home = self._policy.home(key // self._store.num_experts)
            if pool.slot_of[key] >= 0 or not home.start <= slot < home.stop:
                raise RuntimeError(
                    f"policy {self._policy.name}: initial_keys gives slot {slot} to expert key {key}, which has one "
                    f"already or belongs to slots {home.start} to {home.stop - 1}"
                )
            pool.reserve(slot, key, 0)
            (buffer,) = pool.write([slot], [self._store.source(key)])
            if buffer is not None:  # the store may let go of an expert only when it has travelled
                jax.block_until_ready(buffer)
            pool.publish(slot, int(pool.generation[slot]), arrived=buffer)
            self._policy.moved(key, -1)

    @property
    def scarce(self) -> bool:
        """Whether the policy has anything to decide: not every expert is in its slot."""
        return self._pool.num_empty > 0 or self._pool.num_slots < len(self._pool.slot_of)

    def sort(self, keys: np.ndarray, slots: np.ndarray, quantized: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        """Which keys of a layer-step, int64 [n], are there as wanted, bool [n], and the keys that have to travel.

        Args:
          quantized: bool [n], those of which the quantised copy will do; None: none.
        """
        here = self._pool.state[slots] == READY
        if self._copies is None:
            return here, keys[:0] if here.all() else keys[slots < 0]
        willing = np.zeros(len(keys), bool) if quantized is None else quantized
        self._quantized = set(keys[willing].tolist())
        worse = here & self._pool.quantized[slots] & ~willing
        return here & ~worse, keys[(slots < 0) | worse]

    def fetch_later(self, keys: Int[np.ndarray, "n"]) -> None:
        """A lossy layer-step missed these keys; at most S wait, the oldest are forgotten."""
        self._background.update(dict.fromkeys(keys.tolist()))
        while len(self._background) > self._pool.num_slots:
            del self._background[next(iter(self._background))]

    def has_work(self) -> bool:
        """For the link, with the lock held: whether anything may want to travel."""
        return bool(self.urgent or self.put_off or self._background) or (self._policy.prefetches and self.scarce)

    def next_transfer(self) -> Transfer | None:
        """For the link, with the lock held: reserves a slot for what should travel now."""
        if self.urgent:
            key = self.urgent[0]
            if (slot := int(self._pool.slot_of[key])) >= 0:  # as a quantised copy, which will not do
                self.urgent.popleft()
                return self._renew(key, slot)
            slot = self._slot_for(key, urgent=True)
            if slot < 0:
                return None
            self.urgent.popleft()
            quantized = key in self._quantized
            return self._reserve(key, slot, "urgent" if key in self.needed else "prefetch", quantized)
        for key in self.put_off:
            if self._pool.slot_of[key] < 0 and (slot := self._slot_for(key, urgent=True)) >= 0:
                return self._reserve(key, slot, "urgent")
        key = self._policy.next_prefetch() if self.scarce else -1
        if key >= 0:
            slot = self._slot_for(key, urgent=False)
            if slot >= 0:
                return self._reserve(key, slot, "prefetch")
        for key in list(self._background) if self._background else ():
            if self._pool.slot_of[key] >= 0:
                del self._background[key]
            elif (slot := self._slot_for(key, urgent=False)) >= 0:
                del self._background[key]
                return self._reserve(key, slot, "background")
        return None  # what found no slot keeps its place: the running layer holds them all for now

    def _slot_for(self, key: int, urgent: bool) -> int:
        home = self._policy.home(key // self._store.num_experts)
        slot = self._policy.vacant(key, urgent)
        if slot >= 0:
            return slot
        slot = self._policy.victim(key, urgent)
        if slot < 0 and urgent and self.busy:  # rather wait for a computation than for ever
            busy = np.array([slot for slot in self.busy if home.start <= slot < home.stop], np.int64)
            self._pool.let_go(busy)
            slot = self._policy.victim(key, urgent)
            self._pool.keep(busy[busy != slot])
        if slot < 0 and urgent and key not in self.put_off and len(waiting := self.put_off_slots(home)):
            self._pool.let_go(waiting)  # what was put off comes once more
            slot = self._policy.victim(key, urgent)
            self._pool.keep(waiting[waiting != slot])
        if slot in self.busy:
            self.busy.remove(slot)
        return slot

    def put_off_slots(self, home: slice) -> np.ndarray:
        """Slots within `home` of experts that were put off and have arrived, int64 [n]."""
        slots = self._pool.slot_of[list(self.put_off)].astype(np.int64)
        return slots[(self._pool.state[slots] == READY) & (slots >= home.start) & (slots < home.stop)]

    def _reserve(self, key: int, slot: int, kind: str, quantized: bool = False) -> Transfer:
        pool = self._pool
        wasted = bool(pool.unused_prefetch[slot])
        evicted = pool.reserve(slot, key, self.tick, quantized)
        self._counts.transfer(kind, self._tier(quantized).expert_bytes, evicted >= 0, wasted)
        self.started += 1
        self._policy.moved(key, evicted)
        pool.unused_prefetch[slot] = kind == "prefetch"
        return Transfer(key, slot, int(pool.generation[slot]), kind, quantized)

    def _renew(self, key: int, slot: int) -> Transfer:
        """The whole expert takes the place of its quantised copy."""
        self._pool.renew(slot)
        self._counts.transfer("urgent", self._store.expert_bytes, False, False)
        self.started += 1
        return Transfer(key, slot, int(self._pool.generation[slot]), "urgent")

    def _tier(self, quantized: bool) -> HostTier:
        return self._copies if quantized and self._copies is not None else self._store

    def load(self, transfers: Sequence[Transfer]) -> int:
        """For the link, without the lock: starts the copies into the reserved slots, in one call unless a file has to
        be read for one of them; returns their bytes."""
        tiers = [self._tier(transfer.quantized) for transfer in transfers]
        pairs = list(zip(transfers, tiers, strict=True))
        read = [tier.unpinned_bytes(transfer.key) for transfer, tier in pairs]
        for part in [pairs] if not any(read) else [[pair] for pair in pairs]:
            sources = [self._source(transfer, tier) for transfer, tier in part]
            written = self._pool.write([transfer.slot for transfer, _ in part], sources)
            for (transfer, _), buffer in zip(part, written, strict=True):
                transfer.buffer = buffer
        return sum(tier.expert_bytes for tier in tiers)

    def _source(self, transfer: Transfer, tier: HostTier) -> Parts | None:
        if unpinned := tier.unpinned_bytes(transfer.key):
            with self._changed:
                self._counts["disk_reads"] += 1
                self._counts["disk_bytes"] += unpinned
            if self._clock.virtual:
                transfer.disk_seconds = self._disk.seconds_on_link(unpinned) + self._disk.latency_seconds
        return tier.source(transfer.key)

    def arrived(self, transfer: Transfer) -> None:
        """For the link, with the lock held: the expert is usable."""
        needed = transfer.key in self.needed
        pinned = needed or transfer.key in self.put_off
        if self._pool.publish(transfer.slot, transfer.generation, pinned, transfer.buffer) and needed:
            self.here.append(transfer.key)
        transfer.buffer = None
        if self._clock.timeline is not None:
            layer, expert = divmod(transfer.key, self._store.num_experts)
            kind = transfer.kind
            if kind == "urgent" and transfer.key in self._foresight.mispredicted:
                kind = "correction"
            name = f"{kind} layer {layer} expert {expert}"
            self._clock.timeline.append(("link", name, transfer.start, transfer.end))
