"""Variants of the engine: the built one is the replayed engine itself, and the others differ in what they say."""

import dataclasses

import numpy as np
import pytest

from expertflow_jax.offload.engine import ExpertCacheEngine
from expertflow_jax.offload.link import LinkSpec
from expertflow_jax.offload.policies.expertflow import ExpertFlow
from expertflow_jax.offload.store import ExpertSizes
from expertflow_jax.simulation.costs import ComputeCosts, Line
from expertflow_jax.simulation.machines import Machine
from expertflow_jax.simulation.replay import replay
from expertflow_jax.simulation.synthetic import noisy_horizons, synthetic_steps
from expertflow_jax.studies.ablations.variants import BASE, VARIANTS, PoolPerLayer, run

NOTHING = Line(0.0, 0.0)
MACHINE = Machine(
    "small", ComputeCosts(Line(1e-4, 0), Line(5e-5, 1e-6), 1e-5, NOTHING, NOTHING, NOTHING), LinkSpec(0.4, 2), 36864
)
BY_NAME = {variant.name: variant for variant in VARIANTS}


@pytest.fixture(scope="module")
def steps():
    made = synthetic_steps(2, num_layers=4, num_experts=16, top_k=2, batches=6, batch_size=4, prompt_tokens=5)
    return noisy_horizons(made, 3, skill=2.2)


@pytest.fixture(scope="module")
def outcomes(steps):
    return {variant.name: run(variant, steps, MACHINE, 0.5, 4) for variant in VARIANTS}


def test_the_engine_as_built_is_what_is_replayed(steps, outcomes):
    engine = ExpertCacheEngine(ExpertSizes(4, 16, MACHINE.expert_bytes), 32, "expertflow", MACHINE.link)
    engine.warm_up()
    stats = replay(engine, steps, MACHINE.costs)
    base = outcomes[BASE.name]
    assert (base.seconds, base.hit_rate) == (stats["wall_seconds"], stats["hit_rate"])
    assert 0 <= base.steps_without_miss <= base.layers_without_miss <= 1
    assert base.layers_until_miss <= 4


def test_less_knowledge_and_less_room_take_longer(outcomes):
    base = outcomes[BASE.name].seconds
    for name in ("forecast once", "LRU, shared", "pool per layer"):
        assert outcomes[name].seconds > base, name


def test_parts_are_asked_for_together_and_move_less_than_wholes(steps):
    one = dataclasses.replace(BASE, parts=1)
    two = run(dataclasses.replace(BASE, parts=2), steps, MACHINE, 1.0, 4)
    assert two.seconds == pytest.approx(run(one, steps, MACHINE, 1.0, 4).seconds)  # nothing travels: the same work


def test_a_pool_per_layer_keeps_every_layer_within_its_share(steps):
    engine = ExpertCacheEngine(ExpertSizes(4, 16, MACHINE.expert_bytes), 32, PoolPerLayer(), MACHINE.link)
    engine.warm_up()
    stats = replay(engine, steps, MACHINE.costs)
    assert stats["prefetches"] > 0
    assert (engine.pool.key_of // 16).tolist() == np.repeat(np.arange(4), 8).tolist()


@pytest.mark.parametrize("name", ["nearest layer first", "likeliest first", "stall saved per byte"])
def test_another_order_prefetches_only_what_the_engine_would(steps, name):
    policy = BY_NAME[name].policy()
    plain, ours = ExpertFlow.victim, policy.next_prefetch
    engine = ExpertCacheEngine(ExpertSizes(4, 16, MACHINE.expert_bytes), 32, policy, MACHINE.link)
    engine.warm_up()
    refused = 0

    def watched():
        nonlocal refused
        key = ours()
        if key >= 0:
            refused += plain(policy, key, False) < 0
        return key

    policy.next_prefetch = watched
    assert replay(engine, steps, MACHINE.costs)["prefetches"] > 0
    assert refused == 0
