"""A small store whose experts hold their own keys, so that a wrong buffer shows."""

import dataclasses

import numpy as np
import pytest

from expertflow_jax.offload.store import ExpertStore


@dataclasses.dataclass(frozen=True)
class FlatLayout:
    """The part of `ExpertLayout` that a store needs."""

    size: int = 16
    dtype: type = np.float32

    @property
    def part_shapes(self) -> tuple[tuple[int, ...], ...]:
        return ((self.size,),)

    @property
    def nbytes(self) -> int:
        return self.size * np.dtype(self.dtype).itemsize

    def pack(self, gate_up, down):
        return (np.concatenate([np.ravel(gate_up), np.ravel(down)]),)


def make_store(num_layers: int, num_experts: int, size: int = 16) -> ExpertStore:
    store = ExpertStore(FlatLayout(size), num_layers, num_experts)
    for key in range(num_layers * num_experts):
        store.put(*divmod(key, num_experts), np.full(size - 1, key, np.float32), np.full(1, key, np.float32))
    return store


@pytest.fixture(scope="session")
def keyed_store():
    """`keyed_store(L, E)`: expert (l, e) holds l * E + e everywhere; made once per shape."""
    stores: dict[tuple[int, ...], ExpertStore] = {}

    def store(num_layers: int, num_experts: int, size: int = 16) -> ExpertStore:
        shape = (num_layers, num_experts, size)
        if shape not in stores:
            stores[shape] = make_store(*shape)
        return stores[shape]

    return store
