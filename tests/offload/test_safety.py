"""Misuse of the engine ends in one clear error: layer-steps gone by, second threads, closed engines, forgotten ones."""

import gc
import threading
import time
import weakref

import numpy as np
import pytest

from expertflow_jax.offload.clock import RealClock, VirtualClock
from expertflow_jax.offload.engine import ExpertCacheEngine
from expertflow_jax.offload.link import LinkSpec
from expertflow_jax.offload.store import ExpertSizes

SLOW = LinkSpec(64e-9, 0)  # a second for an expert of 64 bytes
CLOCKS = {"virtual": VirtualClock, "real": RealClock}


def small_engine(link=SLOW, clock=None, slots=4, policy="on_demand"):
    engine = ExpertCacheEngine(ExpertSizes(2, 4, 64), slots, policy, link, clock)
    engine.warm_up()
    return engine


def in_thread(work):
    """Runs `work` in another thread; returns what it raised, or None."""
    raised = []

    def run():
        try:
            work()
        except RuntimeError as error:
            raised.append(error)

    thread = threading.Thread(target=run, name="second")
    thread.start()
    thread.join(30)
    assert not thread.is_alive()
    return raised[0] if raised else None


def test_a_generator_given_up_cannot_end_a_newer_layer_step():
    engine = small_engine()
    engine.begin_step(None)
    old = engine.rounds(0, np.arange(4))
    next(old)
    new = engine.rounds(1, np.arange(4))
    served = list(next(new)[0])
    old.close()  # as the garbage collector may, at any moment
    for group, _ in new:
        served += group
    assert sorted(served) == [0, 1, 2, 3]


@pytest.mark.parametrize("ending", ["another layer", "the step's end", "a warm-up"])
def test_rounds_that_another_layer_step_has_ended_say_so(ending):
    engine = small_engine()
    engine.begin_step(None)
    rounds = engine.rounds(0, np.arange(4))
    next(rounds)
    if ending == "another layer":
        list(engine.rounds(1, np.arange(2)))
    elif ending == "the step's end":
        engine.end_step()
    else:
        engine.warm_up()
    with pytest.raises(RuntimeError, match="belong to a layer-step that another one has ended"):
        list(rounds)
    engine.begin_step(None)
    assert sorted(e for group, _ in engine.rounds(0, np.arange(4)) for e in group) == [0, 1, 2, 3]


@pytest.mark.parametrize("clock", CLOCKS)
def test_a_second_thread_within_a_step_is_told_and_changes_nothing(clock):
    with small_engine("direct", CLOCKS[clock]()) as engine:
        engine.begin_step(None)
        rounds = engine.rounds(0, np.arange(4))
        served = list(next(rounds)[0])
        calls = [
            lambda: engine.begin_step(None),
            lambda: list(engine.rounds(1, np.arange(2))),
            lambda: engine.usable(0),
            engine.begin_batch,
            engine.end_step,
            engine.warm_up,
            engine.reset_stats,
        ]
        for call in calls:
            error = in_thread(call)
            assert "one thread at a time: thread 'second' calls in the middle of a step" in str(error)
        for group, _ in rounds:
            served += group
        assert sorted(served) == [0, 1, 2, 3]
        engine.end_step()
        assert in_thread(lambda: engine.begin_step(None)) is None  # between steps anybody may come
        engine.begin_step(None)  # that thread has ended without ending its step


@pytest.mark.parametrize("clock", CLOCKS)
def test_a_closed_engine_says_so(clock):
    engine = small_engine("direct", CLOCKS[clock]())
    engine.begin_step(None)
    rounds = engine.rounds(0, np.arange(4))
    next(rounds)
    engine.close()
    engine.close()
    calls = [
        lambda: next(rounds),
        lambda: engine.begin_step(None),
        lambda: engine.update_horizon(np.zeros((1, 2, 4))),
        lambda: list(engine.rounds(1, np.arange(2))),
        lambda: engine.usable(0),
        lambda: engine.note_lossy(0, np.arange(1), np.ones(4, bool)),
        engine.begin_batch,
        engine.warm_up,
        engine.reset_stats,
    ]
    for call in calls:
        with pytest.raises(RuntimeError, match="the engine is closed"):
            call()
    engine.end_step()
    assert engine.stats()["steps"] == 1


def test_closing_ends_a_call_that_waits_in_another_thread():
    engine = small_engine(LinkSpec(64e-9, 0), RealClock())  # a second for an expert: two are missing, again and again
    begun = threading.Event()

    def close():
        begun.wait()
        engine.close()

    def work():
        engine.begin_step(None)
        rounds = engine.rounds(0, np.arange(4))
        next(rounds)
        begun.set()
        while True:
            list(rounds)
            rounds = engine.rounds(0, np.arange(4))

    closer = threading.Thread(target=close)
    closer.start()
    error = in_thread(work)
    closer.join()
    assert "the engine is closed" in str(error)


def test_an_engine_that_nobody_closes_is_collected_and_its_thread_ends(keyed_store):
    before = set(threading.enumerate())
    engine = ExpertCacheEngine(keyed_store(3, 6), 4, "expertflow", "direct", RealClock())
    engine.warm_up()
    engine.begin_step(None)
    assert len(list(engine.rounds(1, np.arange(6)))) >= 1
    gone = weakref.ref(engine)
    [thread] = set(threading.enumerate()) - before
    del engine
    gc.collect()
    assert gone() is None
    for _ in range(3000):
        if not thread.is_alive():
            break
        time.sleep(0.01)
    assert not thread.is_alive()


@pytest.mark.parametrize("policy", ["expertflow", "on_demand"])
def test_starting_the_stats_anew_changes_no_decision(policy):
    random = np.random.default_rng(5)
    needed = random.random((12, 2, 4)) < 0.5
    logs = []
    for resets in (False, True):
        engine = ExpertCacheEngine(ExpertSizes(2, 4, 64), 3, policy, LinkSpec(64e-9, 0))
        engine.warm_up()
        log = []
        for step, asked_LE in enumerate(needed):
            if resets and step % 3 == 1:
                engine.reset_stats()
            horizon = np.clip(needed[step : step + 2] * 0.6 + 0.2, 0, 1).astype(np.float32)
            engine.begin_step(horizon)
            for layer in range(2):
                engine.clock.spend(0.7, "compute")
                log += [group for group, _ in engine.rounds(layer, np.flatnonzero(asked_LE[layer]))]
            engine.end_step()
            log.append((engine.pool.key_of.tolist(), round(engine.policy.working, 9)))
        logs.append(log)
    assert logs[0] == logs[1]
