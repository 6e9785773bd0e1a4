"""Three tiers: the budget of host memory is never exceeded, every expert can be had, runs start from one state."""

import re

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from expertflow_jax.errors import InputError
from expertflow_jax.models.experts import ExpertLayout
from expertflow_jax.offload.budget import HostPlan, parse_bytes, plan_host, plan_memory
from expertflow_jax.offload.clock import RealClock
from expertflow_jax.offload.engine import ExpertCacheEngine
from expertflow_jax.offload.store import ExpertStore
from expertflow_jax.offload.tiers import TieredStore

LAYERS, EXPERTS = 3, 4
LAYOUT = ExpertLayout(4, 4, np.dtype(np.float32))
FILE_BYTES = 100


def matrices(layer: int, expert: int):
    key = layer * EXPERTS + expert
    return np.full((4, 8), key, np.float32), np.full((4, 4), key, np.float32)


def tiered(pinned: int, reads: list | None = None) -> TieredStore:
    def read(layer, expert):
        if reads is not None:
            reads.append(layer * EXPERTS + expert)
        return matrices(layer, expert)

    plan = HostPlan(LAYERS * EXPERTS, pinned, LAYOUT.nbytes, FILE_BYTES, 0)
    return TieredStore(LAYOUT, LAYERS, EXPERTS, read, plan)


def whole() -> ExpertStore:
    store = ExpertStore(LAYOUT, LAYERS, EXPERTS)
    for key in range(LAYERS * EXPERTS):
        store.put(*divmod(key, EXPERTS), *matrices(*divmod(key, EXPERTS)))
    return store


def pinned_bytes() -> int:
    return sum(
        a.nbytes for a in jax.live_arrays() if a.sharding.memory_kind == "pinned_host" and a.shape in LAYOUT.part_shapes
    )


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 11), st.lists(st.integers(0, LAYERS * EXPERTS - 1), max_size=40))
def test_every_expert_can_be_had_within_the_budget(pinned, keys):
    before = pinned_bytes()
    reads = []
    store = tiered(pinned, reads)
    store.reset()
    recent = list(reversed(store.preferred))
    assert sorted(reads) == sorted(store.preferred)
    for key in keys:
        is_pinned = key in recent[-pinned:]
        assert store.unpinned_bytes(key) == (0 if is_pinned else FILE_BYTES)
        count = len(reads)
        for part in store.source(key):
            assert part.sharding.memory_kind == "pinned_host"
            assert (np.asarray(part) == key).all()
        assert len(reads) - count == (not is_pinned)
        recent = [k for k in recent if k != key] + [key]
        assert store.nbytes <= pinned * LAYOUT.nbytes
        assert pinned_bytes() - before <= (pinned + 1) * LAYOUT.nbytes  # and the one in our hand
    assert store.peak_bytes <= pinned * LAYOUT.nbytes


def test_the_first_experts_of_every_layer_are_pinned_or_the_most_popular():
    store = tiered(5)
    assert store.preferred == [0, 4, 8, 1, 5]
    popularity = np.zeros((LAYERS, EXPERTS))
    popularity[2, 3], popularity[1, 1], popularity[0, 2] = 0.9, 0.5, 0.7
    store.prefer(popularity)
    assert store.preferred[:3] == [11, 2, 5]


def test_a_reset_brings_the_same_state_whatever_ran_before():
    reads = []
    store = tiered(4, reads)
    store.reset()

    def walk():
        store.reset()
        return [store.unpinned_bytes(key) for key in (7, 0, 11, 4, 8, 7) if store.source(key) is not None]

    first = walk()
    for key in (9, 10, 11, 7):
        store.source(key)
    assert walk() == first
    count = len(reads)
    store.reset()
    store.reset()
    assert len(reads) - count <= 4  # what is still there is not read again


@pytest.mark.parametrize("clock", ["virtual", "real"])
@pytest.mark.parametrize("policy", ["on_demand", "expertflow"])
def test_the_engine_serves_the_same_experts_from_three_tiers(clock, policy):
    rng = np.random.default_rng(0)
    steps = [[np.unique(rng.integers(0, EXPERTS, 2)) for _ in range(LAYERS)] for _ in range(12)]
    store = tiered(3)
    with ExpertCacheEngine(store, 2, policy, "direct", RealClock() if clock == "real" else None) as engine:
        engine.warm_up()
        engine.reset_stats()
        for step in steps:
            engine.begin_step(None)
            for layer, wanted in enumerate(step):
                served = {}
                for experts, buffers in engine.rounds(layer, wanted):
                    served |= {e: float(np.asarray(b[0]).flat[0]) for e, b in zip(experts, buffers, strict=True)}
                assert served == {int(e): layer * EXPERTS + e for e in wanted}
            engine.end_step()
        stats = engine.stats()
    assert stats["disk_reads"] > 0
    assert stats["disk_bytes"] == stats["disk_reads"] * FILE_BYTES
    assert store.peak_bytes <= 3 * LAYOUT.nbytes


def test_reading_from_disk_takes_virtual_time():
    def seconds(store, disk):
        with ExpertCacheEngine(store, 1, "on_demand", "emulated(0.001,0)", disk=disk) as engine:
            engine.warm_up()
            engine.reset_stats()
            engine.begin_step(None)
            for _ in engine.rounds(2, np.array([2, 3])):
                pass
            engine.end_step()
            return engine.stats()["stall_seconds"], engine.stats()["disk_reads"]

    plain, none = seconds(whole(), "emulated(0.0001,50)")
    slow, two = seconds(tiered(2), "emulated(0.0001,50)")
    free, _ = seconds(tiered(2), "direct")
    assert (none, two) == (0, 2)
    assert free == pytest.approx(plain)
    assert slow - plain == pytest.approx(2 * (FILE_BYTES / 1e5 + 50e-6))


def test_an_expert_that_cannot_be_read_ends_the_run_in_one_line():
    def read(layer, expert):
        if expert == 3:
            raise InputError("shard-1: truncated or damaged")
        return matrices(layer, expert)

    store = TieredStore(LAYOUT, LAYERS, EXPERTS, read, HostPlan(LAYERS * EXPERTS, 2, LAYOUT.nbytes, FILE_BYTES))
    with ExpertCacheEngine(store, 1, "on_demand", "direct", RealClock()) as engine:
        engine.warm_up()
        engine.begin_step(None)
        with pytest.raises(InputError, match="shard-1: truncated or damaged") as caught:
            for _ in engine.rounds(0, np.array([3])):
                pass
    assert "\n" not in str(caught.value)


SIZES = {"experts": 12, "expert_bytes": 192, "file_bytes": 96, "reading_bytes": 500}


@settings(max_examples=50)
@given(st.integers(0, 4000))
def test_a_host_budget_holds_or_names_the_least_that_works(budget):
    try:
        plan = plan_host(budget, **SIZES)
    except InputError as error:
        exact, readable = re.search(r"minimum of (\d+) bytes \((\S+)\)", str(error)).groups()
        assert budget < int(exact)
        assert plan_host(int(exact), **SIZES).pinned == 2
        assert plan_host(parse_bytes(readable), **SIZES).pinned >= 2
        with pytest.raises(InputError):
            plan_host(int(exact) - 1, **SIZES)
        return
    assert plan.host_bytes <= budget
    assert plan.disk_bytes == (12 - plan.pinned) * 96
    assert plan.pinned == 12 or plan.host_bytes + 192 > budget


def test_a_memory_plan_tells_the_tiers():
    parts = {"dense": 1000, "kv": 200, "workspace": 30, "predictor": 4, "expert_bytes": 192}
    plan = plan_memory(2000, None, **parts, num_layers=3, num_experts=4, host=plan_host(1500, **SIZES))
    assert plan.describe_tiers() == [("device", 1810), ("host, 5 experts pinned", 1460), ("disk, 7 experts", 672)]
    everything = plan_memory(2000, None, **parts, num_layers=3, num_experts=4)
    assert everything.describe_tiers()[1:] == [("host, 12 experts pinned", 2304), ("disk, 0 experts", 0)]
