"""The two tiers: pinned host arrays, a few per expert, and device slots that are overwritten in place."""

import jax
import numpy as np
import pytest

from expertflow_jax.errors import InputError
from expertflow_jax.models.experts import ExpertLayout
from expertflow_jax.offload.slots import EMPTY, KEPT, MOVING, READY, SlotPool
from expertflow_jax.offload.store import ExpertSizes, ExpertStore


def test_every_expert_is_two_matrices_in_pinned_host_memory():
    layout = ExpertLayout(4, 3, np.float32)
    store = ExpertStore(layout, 2, 2)
    random = np.random.default_rng(0)
    gate_up, down = random.random((4, 6), np.float32), random.random((3, 4), np.float32)
    assert store.missing == [(0, 0), (0, 1), (1, 0), (1, 1)]
    store.put(1, 0, gate_up, down)
    kept_gate_up = gate_up.copy()
    gate_up[:] = 0  # the store has its own copy
    parts = store.source(2)
    assert {part.sharding.memory_kind for part in parts} == {"pinned_host"}
    assert tuple(part.shape for part in parts) == layout.part_shapes == ((4, 6), (3, 4))
    assert sum(part.nbytes for part in parts) == store.expert_bytes == store.nbytes == layout.nbytes
    unpacked_gate_up, unpacked_down = layout.unpack(parts)
    np.testing.assert_array_equal(unpacked_gate_up, kept_gate_up)
    np.testing.assert_array_equal(unpacked_down, down)
    assert store.missing == [(0, 0), (0, 1), (1, 1)]


def test_experts_that_do_not_belong_are_refused(keyed_store):
    store = keyed_store(2, 3)
    with pytest.raises(InputError, match="expert 3 of layer 0: the model has 2 layers of 3 experts"):
        store.put(0, 3, np.zeros(8), np.zeros(8))
    with pytest.raises(InputError, match="layer 2"):
        store.put(2, 0, np.zeros(8), np.zeros(8))
    with pytest.raises(InputError, match=r"expert 1 of layer 1 has shapes \(\(15,\),\), the config says \(\(16,\),\)"):
        store.put(1, 1, np.zeros(8), np.zeros(7))
    with pytest.raises(InputError, match="expert 1 of layer 0 was never loaded"):
        ExpertStore(store.layout, 2, 3).source(1)
    assert ExpertSizes(2, 3, 64).source(5) is None


def test_a_slot_is_overwritten_in_the_same_memory(keyed_store):
    store = keyed_store(2, 3)
    pool = SlotPool(1, 2, 3, store.expert_bytes)
    pool.reserve(0, 4, 0)
    ((first,),) = pool.write([0], [store.source(4)])
    assert first.sharding.memory_kind == "device"
    assert (np.array(first) == 4).all()
    pointer = first.unsafe_buffer_pointer()
    pool.publish(0, 1)
    pool.reserve(0, 1, 1)
    ((second,),) = pool.write([0], [store.source(1)])
    assert (np.array(second) == 1).all()
    assert first.is_deleted()
    assert pool.peak_bytes == pool.live_bytes == store.expert_bytes
    if jax.default_backend() == "cpu":
        # losing the donation would be a silent slowdown of a hundred times
        assert second.unsafe_buffer_pointer() == pointer
    assert store.source(4)[0].shape == (16,)  # the host tier is not consumed
    pool.delete()
    assert second.is_deleted()
    assert pool.live_bytes == 0


def test_a_late_arrival_for_a_slot_given_away_is_refused():
    pool = SlotPool(2, 1, 4, 64)
    assert pool.reserve(0, 3, 0) == -1
    old = int(pool.generation[0])
    assert pool.state[:2].tolist() == [MOVING, EMPTY]
    pool.clear()
    pool.reserve(0, 2, 0)
    assert not pool.publish(0, old)
    assert pool.state[0] == MOVING
    assert pool.publish(0, int(pool.generation[0]))
    assert not pool.publish(0, int(pool.generation[0]))
    assert pool.state[0] == READY
    assert pool.ready(np.array([2, 3])).tolist() == [True, False]


@pytest.mark.parametrize("why", ["pinned", "moving", "twice"])
def test_a_slot_in_use_cannot_be_given_away(why):
    pool = SlotPool(2, 1, 4, 64)
    pool.reserve(0, 3, 0)
    if why != "moving":
        pool.publish(0, 1, pinned=why == "pinned")
    with pytest.raises(AssertionError, match="cannot be given"):
        pool.reserve(1 if why == "twice" else 0, 3 if why == "twice" else 1, 0)


def test_only_slots_that_hold_an_unpinned_expert_may_be_overwritten_the_longest_unused_first():
    pool = SlotPool(6, 1, 8, 64)
    for slot, (key, tick) in enumerate([(7, 0), (6, 0), (5, 3), (4, 2), (3, 3)]):
        pool.reserve(slot, key, tick)
        if slot:
            pool.publish(slot, 1, pinned=slot == 1)
    everywhere = slice(0, 6)
    assert [slot for slot in range(6) if pool.order[slot] != KEPT] == [2, 3, 4]
    assert pool.oldest(everywhere) == 3
    pool.keep(np.array([3, -1]))
    assert pool.kept(everywhere).tolist() == [1, 3]
    assert pool.oldest(everywhere) == 4  # as old as slot 2, of a lower key
    assert pool.oldest(slice(0, 2)) == -1
    pool.let_go(np.array([1]))
    assert pool.oldest(everywhere) == 1
    pool.let_go_of(np.array([6]), np.array([1]), 4)
    assert pool.oldest(everywhere) == 4
    assert pool.first_empty(everywhere) == 5
    assert pool.first_empty(slice(0, 4)) == -1
