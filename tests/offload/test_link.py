"""What links are said to do, clocks, and the virtual link's arithmetic."""

import time

import numpy as np
import pytest

from expertflow_jax.errors import InputError
from expertflow_jax.offload.clock import RealClock, VirtualClock
from expertflow_jax.offload.engine import ExpertCacheEngine
from expertflow_jax.offload.link import PROFILES, LinkSpec
from expertflow_jax.offload.store import ExpertSizes


@pytest.mark.parametrize(
    ("text", "bandwidth", "latency", "shown"),
    [
        ("direct", None, 0, "direct"),
        ("emulated(25,10)", 25, 10, "emulated(25,10)"),
        ("emulated(25)", 25, 0, "emulated(25,0)"),
        (" emulated( 0.5 , 1e2 ) ", 0.5, 100, "emulated(0.5,100)"),
        ("emulated(gigabytes_per_second=2, latency_us=3)", 2, 3, "emulated(2,3)"),
        *[(name, *PROFILES[name], name) for name in PROFILES],
    ],
)
def test_links_are_read_and_shown(text, bandwidth, latency, shown):
    spec = LinkSpec.parse(text)
    assert (spec.gigabytes_per_second, spec.latency_us, str(spec)) == (bandwidth, latency, shown)
    assert LinkSpec.parse(spec) is spec
    assert LinkSpec.parse(str(spec)) == spec


@pytest.mark.parametrize(
    "text",
    ["", "Direct", "emulated", "emulated()", "emulated(0,1)", "emulated(-1)", "emulated(nan)", "emulated(inf)",
     "emulated(1,2,3)", "emulated(fast)", "emulated(1,-2)", "pcie9x16"],
)  # fmt: skip
def test_other_links_are_refused_with_the_choices(text):
    with pytest.raises(InputError, match=r"use direct, emulated\(.*pcie4x16") as error:
        LinkSpec.parse(text)
    assert repr(text) in str(error.value)


def test_transfers_follow_each_other_and_arrive_a_latency_after_their_last_byte():
    engine = ExpertCacheEngine(ExpertSizes(1, 4, 1000), 4, "on_demand", LinkSpec(1000 / 1e9, 250_000))
    engine.clock.timeline = []
    engine.begin_step(None)
    rounds = [group for group, _ in engine.rounds(0, np.arange(4))]
    assert rounds == [(0,), (1,), (2,), (3,)]
    events = [event for event in engine.clock.timeline if event[0] == "link"]
    assert [event[1] for event in events] == [f"urgent layer 0 expert {e}" for e in range(4)]
    np.testing.assert_allclose([event[2:] for event in events], [[e, e + 1.25] for e in range(4)])
    assert engine.stats()["stall_seconds"] == pytest.approx(4.25)
    assert engine.stats()["link_seconds"] == pytest.approx(4)


def test_the_window_bounds_what_is_under_way():
    engine = ExpertCacheEngine(ExpertSizes(1, 4, 1000), 4, "on_demand", LinkSpec(1000 / 1e9, 9e6), window=1)
    list(engine.rounds(0, np.arange(4)))
    assert engine.stats()["stall_seconds"] == pytest.approx(40)


def test_urgent_transfers_go_ahead_of_prefetches():
    engine = ExpertCacheEngine(ExpertSizes(2, 4, 1000), 8, "oracle", LinkSpec(1000 / 1e9, 0))
    engine.clock.timeline = []
    horizon = np.zeros((1, 2, 4), np.float32)
    horizon[0, 0, 0] = horizon[0, 1] = 1
    engine.begin_step(horizon)
    engine.clock.spend(0.5, "compute")
    list(engine.rounds(0, np.array([0, 3])))  # 3 was not foreseen: it travels next, ahead of layer 1
    engine.clock.spend(10, "compute")
    engine.end_step()
    names = [event[1] for event in engine.clock.timeline if event[0] == "link"]
    assert names == [
        "prefetch layer 0 expert 0",
        "correction layer 0 expert 3",
        *[f"prefetch layer 1 expert {e}" for e in range(4)],
    ]
    assert engine.stats()["corrections"] == 1


def test_the_virtual_clock_moves_only_when_told():
    clock = VirtualClock()
    clock.timeline = []
    clock.spend(2.0, "compute", "attention")
    clock.wait_until(1.0)
    clock.wait_until(3.0)
    with clock.measure("host"):
        pass
    assert clock.now() == clock.elapsed() == 3.0
    assert clock.totals == {"compute": 2.0, "stall": 1.0, "predictor": 0.0, "host": 0.0}
    assert clock.timeline[:2] == [("compute", "attention", 0.0, 2.0), ("stall", "stall", 2.0, 3.0)]
    clock.reset_totals()
    assert clock.elapsed() == 0
    assert clock.now() == 3.0


def test_the_real_clock_books_what_passed():
    clock = RealClock()
    start = time.perf_counter()
    with clock.measure("host"):
        time.sleep(0.01)
    clock.wait_until(clock.now() + 0.01)
    clock.wait_until(clock.now() - 1)
    clock.spend(5.0, "compute")
    passed = time.perf_counter() - start
    assert 0.01 <= clock.totals["host"] <= passed
    assert 0.01 <= clock.totals["stall"] <= passed
    assert clock.totals["compute"] == 5.0
    assert clock.elapsed() < 5
