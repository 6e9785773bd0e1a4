"""The real link: the same experts as under the virtual clock, no faster than stated, failures shown where one waits."""

import dataclasses
import threading
import time

import numpy as np
import pytest

from expertflow_jax.errors import InputError
from expertflow_jax.models.device_form import POOL, REPLACED
from expertflow_jax.offload.clock import RealClock
from expertflow_jax.offload.engine import ExpertCacheEngine
from expertflow_jax.offload.link import LinkSpec
from expertflow_jax.offload.policies import POLICIES
from expertflow_jax.offload.slot_memory import PooledExpert
from expertflow_jax.offload.store import ExpertStore

LAYERS, EXPERTS = 3, 6


def random_steps(seed, steps):
    random = np.random.default_rng(seed)
    return random.random((steps, LAYERS, EXPERTS)) < 0.4


def numbers_in(buffer):
    """What stages read of an expert that the engine serves."""
    if isinstance(buffer, PooledExpert):
        return buffer.memory.read(lambda numbers_SxP: np.asarray(numbers_SxP[buffer.slot]))
    return np.asarray(buffer[0])


def run(engine, needed, horizon):
    """Serves all steps, checks every buffer, and returns how many experts were asked for."""
    asked = 0
    for step in range(len(needed)):
        engine.begin_step(needed[step : step + 2].astype(np.float32) if horizon else None)
        for layer in range(LAYERS):
            experts = np.flatnonzero(needed[step, layer]).astype(np.int32)
            served = []
            for group, buffers in engine.rounds(layer, experts):
                for expert, buffer in zip(group, buffers, strict=True):
                    np.testing.assert_array_equal(numbers_in(buffer), layer * EXPERTS + expert)
                served += group
            if engine.watches_hidden and layer + 1 < LAYERS:
                engine.observe_hidden(layer + 1, needed[step, layer + 1][None] + 0.5, 2)
            assert sorted(served) == experts.tolist()
            asked += len(experts)
        engine.end_step()
    return asked


def delivered(engine: ExpertCacheEngine, slots: int):
    """How many experts were asked for, and the stats: each is counted once, and no slot too many was held."""
    engine.warm_up()
    engine.reset_stats()
    asked = run(engine, random_steps(slots, 6), engine.forecasts)
    stats = engine.stats()
    assert stats["hits"] + stats["late"] + stats["misses"] == asked
    assert stats["peak_slot_bytes"] <= slots * stats["expert_bytes"]
    return asked, stats


@pytest.mark.parametrize("link", ["direct", "emulated(0.001,50)"])
@pytest.mark.parametrize("policy", [name for name in POLICIES if name != "resident"])
@pytest.mark.parametrize("slots", [1, 2, 7, 18])
def test_every_expert_is_delivered_at_any_number_of_slots(keyed_store, policy, link, slots):
    slots = max(slots, POLICIES[policy].least_slots(LAYERS, EXPERTS))
    with ExpertCacheEngine(keyed_store(LAYERS, EXPERTS), slots, policy, link, RealClock()) as engine:
        asked, stats = delivered(engine, slots)
        assert stats["clock"] == "real"
        if slots == LAYERS * EXPERTS and not policy.startswith("pregated"):  # which keeps nothing beyond its use
            assert stats["hits"] == asked


@pytest.mark.parametrize("form", [REPLACED, POOL, dataclasses.replace(POOL, reads_last=True)])
@pytest.mark.parametrize(("policy", "slots"), [("on_demand", 1), ("expertflow", 2), ("expertflow", 7)])
def test_every_expert_is_delivered_under_the_arguments_of_a_gpu(keyed_store, policy, slots, form):
    with ExpertCacheEngine(keyed_store(LAYERS, EXPERTS), slots, policy, clock=RealClock(), form=form) as engine:
        delivered(engine, slots)


def test_an_emulated_link_takes_at_least_its_time(keyed_store):
    spec = LinkSpec(gigabytes_per_second=64e-6, latency_us=2000)  # 1 ms for an expert of 64 bytes
    with ExpertCacheEngine(keyed_store(LAYERS, EXPERTS), 1, "on_demand", spec, RealClock()) as engine:
        engine.warm_up()
        engine.reset_stats()
        needed = np.ones((1, LAYERS, EXPERTS), bool)
        start = time.perf_counter()
        run(engine, needed, horizon=False)
        passed = time.perf_counter() - start
        stats = engine.stats()
        # with one slot nothing overlaps: each missing expert costs its time on the link and the latency
        assert passed >= (stats["late"] + stats["misses"]) * 3e-3
        assert stats["stall_seconds"] <= passed
        assert stats["link_seconds"] == pytest.approx(stats["bytes_transferred"] / 64e3)


class Travelling:
    """Stands in the place of an array that arrives when it is let."""

    def __init__(self):
        self.arrives = threading.Event()

    def is_ready(self):
        return self.arrives.is_set()

    def block_until_ready(self):
        assert self.arrives.wait(10), "nothing else has started"
        return self


def test_urgent_experts_start_together_and_while_another_travels(keyed_store):
    with ExpertCacheEngine(keyed_store(1, EXPERTS), EXPERTS, "on_demand", "direct", RealClock(), window=3) as engine:
        write, calls, begun, first = engine.pool.write, [], threading.Event(), Travelling()

        def watched(slots, sources):
            calls.append([int(np.asarray(source[0])[0]) for source in sources])
            begun.set()
            if len(calls) == 1:
                return [(first,)]
            first.arrives.set()  # no sooner
            return write(slots, sources)

        engine.pool.write = watched
        engine.begin_step(None)
        engine.note_lossy(0, np.array([5]), engine.usable(0))  # comes in the background
        assert begun.wait(10)
        served = [expert for group, _ in engine.rounds(0, np.arange(4)) for expert in group]
        assert sorted(served) == [0, 1, 2, 3]
        assert calls[:2] == [[5], [0, 1]]  # as many as the window had room for, while the first was on its way


@pytest.mark.slow
@pytest.mark.parametrize("latency", [10, 300])
def test_emulated_bandwidth_is_within_five_percent(keyed_store, latency):
    store = keyed_store(1, 64, 2**16)  # 256 KiB, 2 ms on the link
    spec = LinkSpec(store.expert_bytes / 2e-3 / 1e9, latency)
    with ExpertCacheEngine(store, 8, "on_demand", spec, RealClock()) as engine:
        engine.warm_up()
        errors = []
        for _ in range(24):  # the first compiles; a busy machine delays others
            engine.reset_stats()
            engine.begin_step(None)
            start = time.perf_counter()
            for _ in engine.rounds(0, np.arange(64)):
                pass
            passed = time.perf_counter() - start
            stats = engine.stats()
            errors.append(passed / (stats["link_seconds"] + spec.latency_seconds) - 1)
            assert stats["urgent_transfers"] >= 56
    assert min(errors) == pytest.approx(0, abs=0.05)


def test_a_failed_transfer_surfaces_where_compute_waits(keyed_store):
    store = keyed_store(LAYERS, EXPERTS)
    with ExpertCacheEngine(store, 4, "on_demand", "direct", RealClock()) as engine:
        engine.warm_up()

        def fail(slots, sources):
            raise OSError("the bus is gone")

        engine.pool.write = fail
        engine.begin_step(None)
        with pytest.raises(RuntimeError, match="moving experts to the device failed: the bus is gone"):
            list(engine.rounds(0, np.arange(EXPERTS)))
        with pytest.raises(RuntimeError, match="the bus is gone"):
            engine.begin_step(None)


def test_an_expert_that_was_never_loaded_is_named(keyed_store):
    whole = keyed_store(LAYERS, EXPERTS)
    store = ExpertStore(whole.layout, LAYERS, EXPERTS)
    for key in range(LAYERS * EXPERTS - 1):
        store.put(*divmod(key, EXPERTS), *np.split(np.asarray(whole.source(key)[0]), 2))
    with ExpertCacheEngine(store, 4, "on_demand", "direct", RealClock()) as engine:
        engine.warm_up()
        engine.begin_step(None)
        with pytest.raises(InputError, match="expert 5 of layer 2 was never loaded"):
            list(engine.rounds(2, np.array([5])))


def test_closing_ends_the_thread_and_frees_the_slots(keyed_store):
    before = threading.active_count()
    engine = ExpertCacheEngine(keyed_store(LAYERS, EXPERTS), 4, "on_demand", "emulated(0.001,0)", RealClock())
    engine.warm_up()
    buffers = list(engine.pool.buffers)
    engine.begin_step(None)
    next(engine.rounds(1, np.arange(EXPERTS)))
    engine.close()
    engine.close()
    assert threading.active_count() == before
    assert all(part.is_deleted() for buffer in buffers for part in buffer)
