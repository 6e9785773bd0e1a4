"""The device tier: a fixed number of expert slots, any of which may serve any layer. (Their arrays: slot_memory.py.)

A slot is EMPTY, MOVING (reserved for an expert on its way) or READY. Its generation counts reservations: an
arrival of an older generation is refused, so a slot freed and reused in mid-transfer cannot be published
wrongly (ABA).
What is asked at every layer-step is kept up to date rather than worked out: `order` says which slots may be overwritten
and, least first, which was used longest ago, so that one pass of argmin finds a victim.
Axes: S slots, L MoE layers, E experts. A key is layer * E + expert.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from expertflow_jax.models.device_form import IN_PLACE, DeviceForm
from expertflow_jax.models.experts import Parts
from expertflow_jax.offload.slot_memory import slot_memory

EMPTY, MOVING, READY = 0, 1, 2
KEPT = np.iinfo(np.int64).max


class SlotPool:
    """Which expert lives in which slot, and the buffers themselves.

    Policies read the arrays; only the engine changes them.

    Attributes:
      slot_of: int32 [L * E], slot that holds or awaits an expert, -1 if none.
      key_of: int32 [S], expert that a slot holds or awaits, -1 if empty.
      state: int8 [S + 1], EMPTY, MOVING or READY; the last one, EMPTY, is what slot_of = -1 finds.
      order: int64 [S + 1], last_used * L * E + key of a slot that may be overwritten, KEPT of any other: empty, moving,
        pinned (the running layer still needs it) or busy; the last one is KEPT.
      last_used: int64 [S + 1], layer-step in which its expert was last requested (or loaded).
      generation: int64 [S], reservations so far.
      unused_prefetch: bool [S + 1], prefetched and not requested since.
      quantized: bool [S + 1], its expert is there, or on its way, as a quantised copy.
      memory: the device arrays.
      reuses_at_once: an expert may be overwritten once what reads it has been dispatched.
    """

    def __init__(
        self,
        num_slots: int,
        num_layers: int,
        num_experts: int,
        expert_bytes: int,
        form: DeviceForm = IN_PLACE,
        reuses_at_once: bool = True,
    ):
        self.memory = slot_memory(form, num_slots)
        self.reuses_at_once = reuses_at_once
        self.num_slots = num_slots
        self.num_layers = num_layers
        self.num_experts = num_experts
        self.expert_bytes = expert_bytes
        self.slot_of = np.full(num_layers * num_experts, -1, np.int32)
        self.key_of = np.full(num_slots, -1, np.int32)
        self.state = np.zeros(num_slots + 1, np.int8)
        self.order = np.full(num_slots + 1, KEPT, np.int64)
        self.last_used = np.zeros(num_slots + 1, np.int64)
        self.generation = np.zeros(num_slots, np.int64)
        self.unused_prefetch = np.zeros(num_slots + 1, bool)
        self.quantized = np.zeros(num_slots + 1, bool)
        self.num_empty = num_slots

    @property
    def holds_all(self) -> bool:
        """Whether every expert of the model has arrived in a slot: from then on none leaves."""
        return self.num_slots == self.slot_of.size and bool((self.state[:-1] == READY).all())

    @property
    def buffers(self) -> Sequence[Any]:
        """Of each slot, what a stage that runs its expert is given; None before first use."""
        return self.memory.buffers

    @property
    def peak_bytes(self) -> int:
        """Most bytes that the slots have held at once since `reset_peak`."""
        return self.memory.peak_bytes

    @property
    def live_bytes(self) -> int:
        """Bytes that the slots hold now."""
        return self.memory.nbytes

    def reset_peak(self) -> None:
        """Counts `peak_bytes` anew."""
        self.memory.peak_bytes = self.memory.nbytes

    def layer_buffers(self, layer: int) -> list[Any]:
        """The arrays of all E experts of a layer, where `holds_all`."""
        row = slice(layer * self.num_experts, (layer + 1) * self.num_experts)
        return [self.buffers[slot] for slot in self.slot_of[row].tolist()]

    def first_empty(self, home: slice) -> int:
        """Lowest empty slot within `home`, or -1."""
        if not self.num_empty:
            return -1
        empty = self.state[home] == EMPTY
        place = int(empty.argmax())
        return place + home.start if empty[place] else -1

    def oldest(self, home: slice) -> int:
        """The slot within `home` that may be overwritten and was used longest ago (ties: the lowest key), or -1."""
        place = int(self.order[home].argmin()) + home.start
        return place if self.order[place] != KEPT else -1

    def least(self, worth: np.ndarray, among: np.ndarray | None = None) -> int:
        """The slot that may be overwritten and whose expert is worth least (ties: used longest ago), or -1.

        Args:
          worth: of every expert, [L * E].
          among: bool [S], the slots that are meant; None: all.
        """
        free_S = self.order[:-1] != KEPT
        if among is not None:
            free_S &= among
        slots_n = free_S.nonzero()[0]
        if not len(slots_n):
            return -1
        worth_n = worth[self.key_of[slots_n]]
        lowest_n = slots_n[worth_n == worth_n.min()]
        return int(lowest_n[self.order[lowest_n].argmin()])

    def ready(self, keys: np.ndarray | slice) -> np.ndarray:
        """Whether each expert has arrived in a slot: bool [n]."""
        return self.state[self.slot_of[keys]] == READY

    def keep(self, slots: np.ndarray) -> None:
        """Pins slots int [n]; -1 is passed over."""
        self.order[slots] = KEPT

    def let_go(self, slots: np.ndarray) -> None:
        """The slots int [n], all READY, may be overwritten from now on."""
        self.order[slots] = self.last_used[slots] * self.slot_of.size + self.key_of[slots]

    def let_go_of(self, keys: np.ndarray, slots: np.ndarray, tick: int) -> None:
        """The same, where it is known what they hold, keys int64 [n], and that it was last used at `tick`."""
        self.order[slots] = keys + tick * self.slot_of.size

    def kept(self, home: slice) -> np.ndarray:
        """READY slots within `home` that may not be overwritten, ascending: int64 [n]."""
        return ((self.state[home] == READY) & (self.order[home] == KEPT)).nonzero()[0] + home.start

    def reserve(self, slot: int, key: int, tick: int, quantized: bool = False) -> int:
        """Gives `slot` to the expert `key` that is about to travel; returns the evicted key, -1 if it was
        empty.
        """
        if self.slot_of[key] >= 0 or (self.order[slot] == KEPT and self.state[slot] != EMPTY):
            raise AssertionError(f"slot {slot} cannot be given to expert {key}: in use, or the expert has one")
        evicted = int(self.key_of[slot])
        if evicted >= 0:
            self.slot_of[evicted] = -1
        else:
            self.num_empty -= 1
        self.key_of[slot] = key
        self.slot_of[key] = slot
        self.state[slot] = MOVING
        self.order[slot] = KEPT
        self.last_used[slot] = tick
        self.generation[slot] += 1
        self.quantized[slot] = quantized
        return evicted

    def renew(self, slot: int) -> None:
        """The whole expert is about to travel into the slot that holds its quantised copy."""
        self.state[slot] = MOVING
        self.order[slot] = KEPT
        self.generation[slot] += 1
        self.quantized[slot] = False

    def write(self, slots: Sequence[int], sources: Sequence[Parts | None]) -> Sequence[Parts | None]:
        """Starts the copies of experts' host arrays into reserved slots; returns the arrays that each arrives in, None
        where sizes alone are simulated.

        Asynchronous; the one thread that reserved the slot calls it, and no lock is needed meanwhile.
        """
        parts = [source for source in sources if source is not None]
        if parts:
            return self.memory.write(slots, parts)
        self.memory.nbytes += self.expert_bytes * sum(int(self.generation[slot]) == 1 for slot in slots)
        self.memory.peak_bytes = max(self.memory.peak_bytes, self.memory.nbytes)
        return [None] * len(slots)

    def publish(self, slot: int, generation: int, pinned: bool = False, arrived: Parts | None = None) -> bool:
        """Marks an arrived expert usable, unless its slot has been given away since; returns whether.

        Args:
          arrived: what `write` returned.
        """
        if self.generation[slot] != generation or self.state[slot] != MOVING:
            return False
        if arrived is not None:
            self.memory.land(slot, arrived)
        self.state[slot] = READY
        if not pinned:
            self.order[slot] = self.last_used[slot] * self.slot_of.size + self.key_of[slot]
        return True

    def vacate(self, slots: np.ndarray) -> None:
        """Empties slots int [n], all READY and not KEPT; buffers stay allocated for reuse."""
        self.slot_of[self.key_of[slots]] = -1
        self.key_of[slots] = -1
        self.state[slots] = EMPTY
        self.order[slots] = KEPT
        self.unused_prefetch[slots] = False
        self.num_empty += len(slots)

    def clear(self) -> None:
        """Empties every slot; buffers stay allocated for reuse."""
        self.slot_of[:] = -1
        self.key_of[:] = -1
        self.state[:] = EMPTY
        self.order[:] = KEPT
        self.last_used[:] = 0
        self.unused_prefetch[:] = False
        self.quantized[:] = False
        self.num_empty = self.num_slots

    def delete(self) -> None:
        """Frees the device memory of all slots."""
        self.memory.delete()
        self.clear()
