"""What an engine is at between two batches, as bytes, and back: so that a run that was killed goes on bit for bit.

Under the virtual clock an engine is a deterministic function of what it was told, and all of it is plain Python and
NumPy: the clock, slots, transfers under way, counts and whatever a policy has learnt. That is pickled. Experts are not:
slots are filled again from the host tier. Under a real clock times cannot come back, and nothing is saved.

Arrays that share memory share it again (policies hold views of what the pool keeps). What is read back may be of no
class but this package's, NumPy's, `collections`' and those of modules that are named: a file is no program.
"""

import dataclasses
import io
import pickle
import types
from collections.abc import Collection, Mapping
from typing import Any

import jax
import numpy as np

from expertflow_jax.models.experts import Parts
from expertflow_jax.offload.engine import ExpertCacheEngine
from expertflow_jax.offload.link import Transfer
from expertflow_jax.offload.slot_memory import PooledExpert
from expertflow_jax.offload.slots import SlotPool

_OF_ITS_OWN = ("store", "copies", "clock", "form", "_changed")  # of every engine
_PACKAGE = __name__.partition(".")[0]
_PLAIN = {
    "builtins": {"set", "frozenset", "slice", "range", "complex", "bytearray"},
    "collections": {"deque", "OrderedDict", "Counter"},
    "numpy": {"ndarray", "dtype"},
    "numpy._core.multiarray": {"_reconstruct", "scalar"},
    "numpy._core.numeric": {"_frombuffer"},
    "numpy.random._pickle": {"__generator_ctor", "__bit_generator_ctor"},
    "numpy.random._pcg64": {"PCG64"},
    __name__: {"_view", "_method"},
}


class CannotBeSaved(Exception):
    """A policy holds something that has no form as bytes; the run goes on, and after a kill begins anew."""


def dump(tree: Any, known: Mapping[str, Any]) -> bytes:
    """`tree` without the objects of `known`, which are named in it.

    Raises:
      CannotBeSaved: it holds what cannot be pickled, such as arrays on a device.
    """
    content = io.BytesIO()
    try:
        _Pickler(content, known).dump(tree)
    except (pickle.PicklingError, TypeError, AttributeError, NotImplementedError) as error:
        raise CannotBeSaved(str(error)) from error
    return content.getvalue()


def load(content: bytes, known: Mapping[str, Any], modules: Collection[str] = ()) -> Any:
    """What `dump` was given, with these objects in the places of those.

    Args:
      modules: whose classes may be in it, besides this package's.

    Raises:
      pickle.UnpicklingError: the bytes want a class that they may not.
    """
    return _Unpickler(io.BytesIO(content), known, modules).load()


class _Pickler(pickle.Pickler):
    def __init__(self, file: io.BytesIO, known: Mapping[str, Any]):
        super().__init__(file, protocol=5)
        self._names = {id(value): name for name, value in known.items()}

    def persistent_id(self, obj: Any) -> str | None:
        return self._names.get(id(obj))

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, jax.Array):
            raise pickle.PicklingError("an array on a device")
        if isinstance(obj, Transfer) and obj.buffer is not None:  # the pool has it
            return dataclasses.replace(obj, buffer=None).__reduce_ex__(5)
        if isinstance(obj, types.MethodType):
            return _method, (obj.__self__, obj.__func__.__name__)
        if type(obj) is np.ndarray and type(obj.base) is np.ndarray:
            offset = obj.__array_interface__["data"][0] - obj.base.__array_interface__["data"][0]
            return _view, (obj.base, offset, obj.shape, obj.strides, obj.dtype)
        return NotImplemented


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, known: Mapping[str, Any], modules: Collection[str]):
        super().__init__(file)
        self._known, self._modules = known, set(modules)

    def persistent_load(self, name: Any) -> Any:
        return self._known[name]

    def find_class(self, module: str, name: str) -> Any:
        if name in _PLAIN.get(module, ()):
            return super().find_class(module, name)
        if module.partition(".")[0] == _PACKAGE or module in self._modules:
            value = super().find_class(module, name)
            if isinstance(value, type):
                return value
        raise pickle.UnpicklingError(f"{module}.{name} has no place in a saved state")


def _view(base: np.ndarray, offset: int, shape: tuple[int, ...], strides: tuple[int, ...], dtype: np.dtype) -> Any:
    return np.ndarray(shape, dtype, base.reshape(-1, order="A"), offset, strides)


def _method(owner: Any, name: str) -> Any:
    value = getattr(owner, name)
    if not isinstance(value, types.MethodType) or isinstance(owner, type | types.ModuleType):
        raise pickle.UnpicklingError(f"{name} is no method")
    return value


def engine_parts(engine: ExpertCacheEngine) -> dict[str, Any]:
    """What tells this engine from a new one with the same arguments, between two steps; see `put_back`."""
    pool = engine.pool
    return {
        "engine": {name: value for name, value in vars(engine).items() if name not in _OF_ITS_OWN},
        "clock": vars(engine.clock),
        "slot_bytes": (pool.memory.nbytes, pool.memory.peak_bytes),
        "quantized": [_is_quantized(engine, pool, slot) for slot in range(pool.num_slots)],
        "pinned": list(getattr(engine.store, "pinned_keys", ())),
    }


def engine_objects(engine: ExpertCacheEngine) -> dict[str, Any]:
    """What `engine_parts` refers to and a new engine has of its own."""
    known = {name: getattr(engine, name) for name in _OF_ITS_OWN if getattr(engine, name) is not None}
    return {**known, "memory": engine.pool.memory}


def put_back(engine: ExpertCacheEngine, parts: Mapping[str, Any]) -> None:
    """Brings an engine, new and warm, to where the one was that `parts` are of."""
    saved: SlotPool = parts["engine"]["pool"]
    for slot, quantized in enumerate(parts["quantized"]):
        if quantized is not None:
            tier = engine.copies if quantized else engine.store
            assert tier is not None, "the engine was made with other arguments"
            _fill(engine.pool, slot, tier.source(max(int(saved.key_of[slot]), 0)))
    engine.pool.memory.nbytes, engine.pool.memory.peak_bytes = parts["slot_bytes"]
    for key in parts["pinned"]:
        engine.store.source(key)
    vars(engine.clock).update(parts["clock"])
    vars(engine).update(parts["engine"])


def _fill(pool: SlotPool, slot: int, source: Parts | None) -> None:
    (arrived,) = pool.write([slot], [source])
    if arrived is not None:
        pool.memory.land(slot, jax.block_until_ready(arrived))


def _is_quantized(engine: ExpertCacheEngine, pool: SlotPool, slot: int) -> bool | None:
    """Whether a slot's memory is that of a quantised copy; None: it has none yet."""
    buffer = pool.buffers[slot]
    if buffer is None:
        return None
    if isinstance(buffer, PooledExpert):  # a pool has one layout
        return False
    return engine.copies is not None and sum(part.nbytes for part in buffer) == engine.copies.expert_bytes
