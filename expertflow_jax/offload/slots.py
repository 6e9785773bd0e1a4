"""The device tier: a fixed number of expert slots, each one device buffer, any of which may serve any layer.

One buffer per slot rather than one pool array: a buffer is what XLA orders and donates, so a write into one
slot never waits for a running step that reads the others (measured: 83 ms against 0.2 ms), and nothing copies
a pool. On the CPU backend a slot is overwritten in place through donation, 0.1 to 0.6 of the time of a fresh
buffer (no new pages; the write waits for readers of that slot alone); elsewhere the evicted buffer is deleted
and the expert put directly, because only a plain `device_put` travels on the GPU's copy stream beside
compute.

A slot is EMPTY, MOVING (reserved for an expert on its way) or READY. Its generation counts reservations: an
arrival of an older generation is refused, so a slot freed and reused in mid-transfer cannot be published
wrongly (ABA).
Axes: S slots, L MoE layers, E experts, P numbers in an expert. A key is layer * E + expert.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

EMPTY, MOVING, READY = 0, 1, 2


@functools.partial(jax.jit, donate_argnums=0)
def _overwrite(old: jax.Array, source: jax.Array) -> jax.Array:
    """The expert's numbers from pinned host memory in the memory of `old`."""
    return jax.lax.dynamic_update_slice(old, jax.device_put(source, jax.memory.Space.Device), (jnp.int32(0),))


class SlotPool:
    """Which expert lives in which slot, and the buffers themselves.

    Policies read the arrays; only the engine changes them.

    Attributes:
      slot_of: int32 [L * E], slot that holds or awaits an expert, -1 if none.
      key_of: int32 [S], expert that a slot holds or awaits, -1 if empty.
      state: int8 [S], EMPTY, MOVING or READY.
      pinned: bool [S], the running layer still needs it: never a victim.
      busy: bool [S], handed to a computation that may still run: no victim for prefetches.
      last_used: int64 [S], layer-step in which its expert was last requested (or loaded).
      generation: int64 [S], reservations so far.
      unused_prefetch: bool [S], prefetched and not requested since.
      buffers: S device arrays [P], None before first use.
      peak_bytes: most bytes that slot buffers have held at once.
    """

    def __init__(self, num_slots: int, num_layers: int, num_experts: int, expert_bytes: int):
        self.num_slots = num_slots
        self.num_layers = num_layers
        self.num_experts = num_experts
        self.expert_bytes = expert_bytes
        self.slot_of = np.full(num_layers * num_experts, -1, np.int32)
        self.key_of = np.full(num_slots, -1, np.int32)
        self.state = np.zeros(num_slots, np.int8)
        self.pinned = np.zeros(num_slots, bool)
        self.busy = np.zeros(num_slots, bool)
        self.last_used = np.zeros(num_slots, np.int64)
        self.generation = np.zeros(num_slots, np.int64)
        self.unused_prefetch = np.zeros(num_slots, bool)
        self.buffers: list[jax.Array | None] = [None] * num_slots
        self.num_empty = num_slots
        self.live_bytes = 0
        self.peak_bytes = 0

    def first_empty(self, home: slice) -> int:
        """Lowest empty slot within `home`, or -1."""
        if not self.num_empty:
            return -1
        empty = self.state[home] == EMPTY
        place = int(empty.argmax())
        return place + home.start if empty[place] else -1

    def evictable(self, home: slice, even_busy: bool) -> np.ndarray:
        """Slots within `home` that may be overwritten, ascending: int64 [n]."""
        free = (self.state[home] == READY) & ~self.pinned[home]
        if not even_busy:
            free &= ~self.busy[home]
        return free.nonzero()[0] + home.start

    def ready(self, keys: np.ndarray | slice) -> np.ndarray:
        """Whether each expert has arrived in a slot: bool [n]."""
        slots = self.slot_of[keys]
        return (slots >= 0) & (self.state[slots] == READY)

    def reserve(self, slot: int, key: int, tick: int) -> int:
        """Gives `slot` to the expert `key` that is about to travel; returns the evicted key, -1 if it was
        empty.
        """
        if self.pinned[slot] or self.state[slot] == MOVING or self.slot_of[key] >= 0:
            raise AssertionError(f"slot {slot} cannot be given to expert {key}: in use, or the expert has one")
        evicted = int(self.key_of[slot])
        if evicted >= 0:
            self.slot_of[evicted] = -1
        else:
            self.num_empty -= 1
        self.key_of[slot] = key
        self.slot_of[key] = slot
        self.state[slot] = MOVING
        self.busy[slot] = False
        self.last_used[slot] = tick
        self.generation[slot] += 1
        return evicted

    def write(self, slot: int, source: jax.Array | None) -> jax.Array | None:
        """Starts the copy of a host buffer into a reserved slot and returns the slot's new buffer.

        Asynchronous; the one thread that reserved the slot calls it, and no lock is needed meanwhile.
        """
        old = self.buffers[slot]
        if source is None:
            new, alive = None, self.expert_bytes if self.generation[slot] == 1 else 0
            self._account(alive, alive)
        elif old is None:
            device = next(iter(source.devices()))
            new = jax.device_put(source, jax.sharding.SingleDeviceSharding(device, memory_kind="device"))
            self._account(new.nbytes, new.nbytes)
        elif next(iter(old.devices())).platform == "cpu":
            new = _overwrite(old, source)
            if not old.is_deleted():
                self._account(new.nbytes, 0)
                old.delete()
        else:
            sharding = old.sharding
            old.delete()
            new = jax.device_put(source, sharding)
        self.buffers[slot] = new
        return new

    def _account(self, peak: int, kept: int) -> None:
        self.peak_bytes = max(self.peak_bytes, self.live_bytes + peak)
        self.live_bytes += kept

    def publish(self, slot: int, generation: int) -> bool:
        """Marks an arrived expert usable, unless its slot has been given away since; returns whether."""
        if self.generation[slot] != generation or self.state[slot] != MOVING:
            return False
        self.state[slot] = READY
        return True

    def clear(self) -> None:
        """Empties every slot; buffers stay allocated for reuse."""
        self.slot_of[:] = -1
        self.key_of[:] = -1
        self.state[:] = EMPTY
        self.pinned[:] = False
        self.busy[:] = False
        self.last_used[:] = 0
        self.unused_prefetch[:] = False
        self.num_empty = self.num_slots

    def delete(self) -> None:
        """Frees the device memory of all slots."""
        for buffer in self.buffers:
            if buffer is not None and not buffer.is_deleted():
                buffer.delete()
        self.buffers = [None] * self.num_slots
        self.live_bytes = 0
        self.clear()
