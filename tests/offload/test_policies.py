"""What each policy is for: hit rates on made-up traces in their proper order, and no harmful prefetch."""

import functools

import numpy as np
import pytest

from expertflow_jax.errors import InputError
from expertflow_jax.offload.engine import ExpertCacheEngine
from expertflow_jax.offload.policies import POLICIES, make_policy
from expertflow_jax.offload.slots import KEPT
from expertflow_jax.offload.store import ExpertSizes
from expertflow_jax.simulation.costs import ComputeCosts, Line
from expertflow_jax.simulation.limits import least_transfers
from expertflow_jax.simulation.replay import ReplayStep, replay, true_horizons
from expertflow_jax.simulation.synthetic import noisy_horizons, recall, synthetic_steps

LAYERS, EXPERTS = 6, 32
FRACTIONS = [0.125, 0.25, 0.5, 0.75]
NOTHING = Line(0.0, 0.0)
COSTS = ComputeCosts(Line(0.5e-3, 0), Line(0.25e-3, 0), 0.03e-3, NOTHING, NOTHING, NOTHING)
TRACES = {
    "prefill and decode": {"batches": 6, "batch_size": 8, "prompt_tokens": 12, "decode_steps": 5},
    "decode": {"batches": 2, "batch_size": 8, "prompt_tokens": 0, "decode_steps": 15},
    "one sequence": {"batches": 2, "batch_size": 1, "prompt_tokens": 0, "decode_steps": 40},
}


@functools.cache
def trace(name):
    steps = synthetic_steps(3, num_layers=LAYERS, num_experts=EXPERTS, top_k=2, **TRACES[name])
    forecast = noisy_horizons(steps, 4, skill=2.2)
    return steps, forecast, true_horizons(steps, len(steps))


@functools.cache
def outcome(policy, name, fraction, experts_per_ms, horizon="forecast"):
    steps, forecast, truth = trace(name)
    slots = int(fraction * LAYERS * EXPERTS)
    engine = ExpertCacheEngine(ExpertSizes(LAYERS, EXPERTS, 10**6), slots, policy, f"emulated({experts_per_ms},0)")
    engine.warm_up()
    used = {"none": steps, "forecast": forecast, "truth": truth}[horizon]
    return replay(engine, used, COSTS)


@pytest.mark.parametrize("name", TRACES)
def test_the_forecast_is_good_and_not_perfect(name):
    _, forecast, truth = trace(name)
    assert 0.65 < recall(forecast) < 0.95
    assert recall(truth) == 1
    chance = np.concatenate([step.horizon[0].ravel() for step in forecast])
    needed = np.concatenate([step.needed.ravel() for step in forecast])
    for low in np.arange(0, 1, 0.25):
        within = (chance >= low) & (chance < low + 0.25)
        assert needed[within].mean() == pytest.approx(chance[within].mean(), abs=0.05)  # calibrated


@pytest.mark.parametrize("experts_per_ms", [2, 8])
@pytest.mark.parametrize("fraction", FRACTIONS)
@pytest.mark.parametrize("name", TRACES)
def test_expertflow_lies_between_caches_without_forecast_and_the_oracle(name, fraction, experts_per_ms):
    flow, oracle, *blind = (
        outcome(policy, name, fraction, experts_per_ms, horizon)
        for policy, horizon in [
            ("expertflow", "forecast"),
            ("oracle", "truth"),
            ("cache_moe", "none"),
            ("on_demand", "none"),
        ]
    )
    assert flow["hit_rate"] <= oracle["hit_rate"]
    assert flow["wall_seconds"] >= oracle["wall_seconds"]
    for other in blind:
        assert flow["hit_rate"] > other["hit_rate"]
        assert flow["wall_seconds"] < other["wall_seconds"]
        assert other["corrections"] == other["prefetches"] == 0
    assert flow["corrections"] <= flow["misses"]


@pytest.mark.parametrize("fraction", FRACTIONS)
def test_expertflow_with_the_truth_is_as_good_as_the_oracle(fraction):
    flow = outcome("expertflow", "prefill and decode", fraction, 4, "truth")
    oracle = outcome("oracle", "prefill and decode", fraction, 4, "truth")
    assert flow["hit_rate"] == pytest.approx(oracle["hit_rate"], abs=0.01)
    assert flow["wall_seconds"] == pytest.approx(oracle["wall_seconds"], rel=0.01)
    assert flow["corrections"] == 0


def test_a_better_forecast_gives_more_hits():
    steps = trace("prefill and decode")[0]
    rates = []
    for skill in [0.0, 1.0, 2.0, 4.0, np.inf]:
        engine = ExpertCacheEngine(
            ExpertSizes(LAYERS, EXPERTS, 10**6), LAYERS * EXPERTS // 4, "expertflow", "emulated(8,0)"
        )
        engine.warm_up()
        rates.append(replay(engine, noisy_horizons(steps, 4, skill), COSTS)["hit_rate"])
    assert rates == sorted(rates)
    assert rates[-1] > rates[0] + 0.1


def test_more_slots_give_more_hits():
    for policy, horizon in [("cache_moe", "none"), ("expertflow", "forecast"), ("oracle", "truth")]:
        rates = [outcome(policy, "decode", f, 8, horizon)["hit_rate"] for f in FRACTIONS]
        assert rates == sorted(rates)


@pytest.mark.parametrize("policy", ["expertflow", "oracle"])
def test_a_prefetch_never_displaces_what_is_worth_more(policy):
    steps = noisy_horizons(trace("decode")[0], 5, 2.2 if policy == "expertflow" else np.inf)
    engine = ExpertCacheEngine(ExpertSizes(LAYERS, EXPERTS, 10**6), 40, policy, "emulated(8,0)")
    engine.warm_up()
    plain, seen = engine.policy.victim, 0

    def watched(key, urgent):
        nonlocal seen
        slot = plain(key, urgent)
        held = engine.pool.key_of[(engine.pool.order[:-1] != KEPT).nonzero()[0]]
        if policy == "oracle":
            worth = -engine.policy._next_use.astype(np.float64)
        else:
            worth = np.concatenate([engine.policy.order.values(layer) for layer in range(LAYERS)])
        if slot >= 0:
            assert worth[engine.pool.key_of[slot]] == worth[held].min()
            if not urgent:
                assert worth[engine.pool.key_of[slot]] < worth[key]
                seen += 1
        return slot

    engine.policy.victim = watched
    replay(engine, steps, COSTS)
    assert seen > 100


def test_cache_moe_keeps_every_layer_within_its_share():
    engine = ExpertCacheEngine(ExpertSizes(LAYERS, EXPERTS, 10**6), 20, "cache_moe", "emulated(8,0)")
    engine.warm_up()
    replay(engine, trace("decode")[0], COSTS)
    assert (engine.pool.key_of // EXPERTS).tolist() == [0] * 4 + [1] * 4 + [2, 2, 2, 3, 3, 3, 4, 4, 4, 5, 5, 5]


def test_what_is_not_likely_does_not_travel_unasked():
    engine = ExpertCacheEngine(ExpertSizes(1, 4, 64), 2, "expertflow", "emulated(1,0)")
    engine.begin_step(np.array([[[0.7, 0.8, 0.0, 0.0]]], np.float32))
    engine.clock.spend(1.0, "compute")
    engine.end_step()
    assert sorted(engine.pool.key_of.tolist()) == [-1, 1]  # the slots were empty


def test_without_a_horizon_expertflow_lives_on_frequencies():
    assert (
        outcome("expertflow", "decode", 0.5, 8, "none")["hit_rate"]
        > outcome("cache_moe", "decode", 0.5, 8, "none")["hit_rate"]
    )
    assert outcome("expertflow", "decode", 0.5, 8, "none")["corrections"] == 0


def test_names_are_looked_up_with_a_suggestion():
    assert list(POLICIES) == [
        *("resident", "on_demand", "cache_moe", "class_lru", "lfu", "speculative", "se_moe"),
        *("pregated", "pregated_forecast", "moe_infinity", "expertflow", "oracle"),
    ]
    for name in POLICIES:
        assert make_policy(name).name == name
    with pytest.raises(InputError, match="did you mean 'oracle'"):
        make_policy("oracel")


def test_a_forecast_is_of_use_until_every_expert_is_in_its_slot():
    engine = ExpertCacheEngine(ExpertSizes(1, 4, 64), 4, "expertflow", "emulated(1,0)")
    assert engine.forecasts  # the slots are empty
    engine.warm_up()
    assert not engine.forecasts
    engine.policy.observe = engine.policy.next_prefetch = None  # nothing is asked any more
    engine.begin_step(np.ones((1, 1, 4), np.float32))
    assert [group for group, _ in engine.rounds(0, np.arange(4))] == [(0, 1, 2, 3)]
    assert engine.stats()["hit_rate"] == 1


def test_a_starved_prefetch_must_be_worth_its_victims_place():
    """Two layers whose experts are all used in every step: each slot given to a prefetch costs a hit per step."""
    steps = [ReplayStep(1, np.ones((2, 4), int)) for _ in range(8)]
    engine = ExpertCacheEngine(ExpertSizes(2, 4, 10**6), 4, "expertflow", "emulated(0.001,0)")
    engine.warm_up()
    stats = replay(engine, true_horizons(steps, 8), COSTS)
    needed = np.ones((8, 2, 4), bool)
    least = least_transfers(needed, 4, [0, 1, 4, 5])
    assert stats["bytes_transferred"] <= (least + 2) * 10**6  # before the first step has been weighed
