"""The device arrays of expert slots, in the forms that `models.device_form` names.

`OwnArrays`: arrays per slot rather than one for all, since an array is what XLA orders and donates: a write into one
slot never waits for a running step that reads the others (measured on CPU: 83 ms against 0.2 ms).

`PooledArrays`: one array per part of an expert, [S, ...], for kernels that index it by slot; it is allocated once and
stays where it is. An expert arrives by `device_put` in arrays of its own, on a GPU beside compute, and is then written
into its slot by a donated update, which runs in the order of dispatch: behind every computation that reads what it
overwrites. The pool's arrays change hands at each such write, so whoever reads them does so within `read`.

Axes: S slots.
"""

import functools
import threading
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from expertflow_jax.models.device_form import DeviceForm
from expertflow_jax.models.experts import Parts


class SlotMemory(Protocol):
    """What the slots ask of their memory.

    Attributes:
      nbytes: device bytes held now.
      peak_bytes: most bytes held at once.
    """

    nbytes: int
    peak_bytes: int

    @property
    def buffers(self) -> Sequence[Any]:
        """Of each slot, what a stage that runs its expert is given: arrays, or a `PooledExpert`."""

    def write(self, slots: Sequence[int], sources: Sequence[Parts]) -> list[Parts]:
        """Starts the copies of experts' host arrays into slots; returns the arrays that each arrives in.

        Asynchronous; the one thread that reserved the slots calls it. One call where it can be: each takes 0.1 to
        0.4 ms of Python, which hold up the thread that computes.
        """

    def land(self, slot: int, arrived: Parts) -> None:
        """Puts an expert that has arrived where stages read it."""

    def delete(self) -> None:
        """Frees the device memory."""


def slot_memory(form: DeviceForm, num_slots: int) -> SlotMemory:
    """Memory for `num_slots` experts; nothing is allocated before the first of them is written."""
    return PooledArrays(num_slots) if form.slots == "pool" else OwnArrays(num_slots, form.slots == "in_place")


def place_experts(form: DeviceForm, sources: Sequence[Parts]) -> SlotMemory:
    """Experts in slots of their own, all of which have arrived."""
    memory = slot_memory(form, len(sources))
    for slot, arrived in enumerate(memory.write(range(len(sources)), sources)):
        memory.land(slot, jax.block_until_ready(arrived))
    return memory


class OwnArrays:
    """Slots with arrays of their own. See `SlotMemory`."""

    def __init__(self, num_slots: int, in_place: bool):
        """Args: in_place: overwrite by donation, otherwise delete and put anew."""
        self.buffers: list[Parts | None] = [None] * num_slots
        self.nbytes = self.peak_bytes = 0
        self._in_place = in_place

    def write(self, slots: Sequence[int], sources: Sequence[Parts]) -> list[Parts]:
        anew = []
        for slot, source in zip(slots, sources, strict=True):
            old = self.buffers[slot]
            if old is not None and self._in_place and _alike(old, source):
                self.buffers[slot] = self._overwrite(old, source)
                continue
            if old is not None:
                self.nbytes -= _size(old)
                _delete(old)
            anew.append((slot, source))
        if anew:
            for (slot, _), new in zip(anew, _put([source for _, source in anew]), strict=True):
                self.buffers[slot] = new
                self.nbytes += _size(new)
            self.peak_bytes = max(self.peak_bytes, self.nbytes)
        return [self.buffers[slot] for slot in slots]  # type: ignore[misc]

    def _overwrite(self, old: Parts, source: Parts) -> Parts:
        new = _overwrite(old, source)
        if not all(part.is_deleted() for part in old):
            self.peak_bytes = max(self.peak_bytes, self.nbytes + _size(old))
            _delete(old)
        return new

    def land(self, slot: int, arrived: Parts) -> None:
        """Nothing to do: it is there."""

    def delete(self) -> None:
        for buffer in self.buffers:
            if buffer is not None:
                _delete(buffer)
        self.buffers = [None] * len(self.buffers)
        self.nbytes = 0


class PooledExpert(NamedTuple):
    """An expert in a slot of a pool."""

    memory: "PooledArrays"
    slot: int


class PooledArrays:
    """Slots as rows of one array per part. See `SlotMemory`."""

    def __init__(self, num_slots: int):
        self.buffers = [PooledExpert(self, slot) for slot in range(num_slots)]
        self.nbytes = self.peak_bytes = 0
        self._pool: Parts = ()
        self._lock = threading.Lock()
        self._numbers: dict[int, jax.Array] = {}  # of slots, on the device: an upload would wait for copies under way

    def write(self, slots: Sequence[int], sources: Sequence[Parts]) -> list[Parts]:
        on_device = _on_device(sources[0])
        if not self._pool:
            shapes = tuple((len(self.buffers), *part.shape) for part in sources[0])
            self._pool = _allocate(shapes, tuple(part.dtype for part in sources[0]), on_device)
            self.nbytes = self.peak_bytes = _size(self._pool)
        for slot in slots:
            if slot not in self._numbers:
                self._numbers[slot] = jax.device_put(np.int32(slot), on_device)
        return _put(sources)

    def land(self, slot: int, arrived: Parts) -> None:
        with self._lock:
            self._pool = _commit(self._pool, arrived, self._numbers[slot])

    def read[Result](self, run: Callable[..., Result], *args: Any) -> Result:
        """Calls `run` with these arguments and the pool's arrays [S, ...], which nobody replaces meanwhile."""
        with self._lock:
            return run(*args, *self._pool)

    def delete(self) -> None:
        with self._lock:
            _delete(self._pool)
            self._pool = ()
        self._numbers.clear()
        self.nbytes = 0


@functools.partial(jax.jit, donate_argnums=0)
def _overwrite(old: Parts, source: Parts) -> Parts:
    """The expert's numbers from pinned host memory in the memory of `old`."""
    moved = jax.device_put(source, jax.memory.Space.Device)
    start = jnp.int32(0)
    return tuple(jax.lax.dynamic_update_slice(a, b, (start,) * a.ndim) for a, b in zip(old, moved, strict=True))


@functools.partial(jax.jit, donate_argnums=0)
def _commit(pool: Parts, expert: Parts, slot: jax.Array) -> Parts:
    """`pool` [S, ...] with the expert in this slot."""
    pairs = zip(pool, expert, strict=True)
    return tuple(jax.lax.dynamic_update_index_in_dim(part, new, slot, axis=0) for part, new in pairs)


def _allocate(shapes: tuple[tuple[int, ...], ...], dtypes: tuple[Any, ...], sharding: jax.sharding.Sharding) -> Parts:
    zeros = jax.jit(lambda: tuple(map(jnp.zeros, shapes, dtypes)), out_shardings=sharding)
    return zeros()


def _alike(old: Parts, source: Parts) -> bool:
    """Whether one fits into the memory of the other: a quantised copy does not into that of a whole expert."""
    return [(a.shape, a.dtype) for a in old] == [(b.shape, b.dtype) for b in source]


def _on_device(source: Parts) -> jax.sharding.SingleDeviceSharding:
    """The device whose host memory holds the expert."""
    return jax.sharding.SingleDeviceSharding(next(iter(source[0].devices())), memory_kind="device")


def _put(sources: Sequence[Parts]) -> list[Parts]:
    """Experts in new arrays on the device."""
    return jax.device_put(list(sources), _on_device(sources[0]))


def _size(parts: Parts) -> int:
    return sum(part.nbytes for part in parts)


def _delete(parts: Parts) -> None:
    for part in parts:
        if not part.is_deleted():
            part.delete()
