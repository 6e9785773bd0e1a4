"""Deferred experts count one MoE layer later, as in a plain walk through the layers, and are waited for less."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from expertflow_jax import checkpoints
from expertflow_jax.inference.forecasting import NoForecast
from expertflow_jax.inference.generation import generate_batch
from expertflow_jax.inference.loading import load_model
from expertflow_jax.inference.served import serve
from expertflow_jax.models.experts import run_expert
from expertflow_jax.offload.clock import VirtualClock
from expertflow_jax.offload.misses.defer import Defer
from expertflow_jax.offload.variant import Variant
from expertflow_jax.processing.batching import Prompt
from expertflow_jax.simulation.costs import ComputeCosts, Line

BASE = str(Path(__file__).parents[1] / "goldens" / "models" / "base")
COSTS = ComputeCosts(Line(1e-4, 1e-6), Line(1e-5, 1e-7), 1e-6, Line(1e-5, 0), Line(1e-4, 1e-6), Line(1e-4, 1e-6))
PROMPTS = [Prompt(ids.astype(np.int32)) for ids in np.random.default_rng(0).integers(12, 40, (3, 7))]
POLICIES = ("on_demand", "cache_moe", "lfu", "class_lru", "moe_infinity", "speculative")


class Recorded(Defer):
    """Keeps what it decided, layer-step by layer-step."""

    def __init__(self, **options):
        super().__init__(**options)
        self._deferred = []  # bool [E] of each layer-step

    def decide(self, step):
        decision = super().decide(step)
        nothing = np.zeros(len(step.usable), bool)
        self._deferred.append(nothing if decision.deferred is None else decision.deferred)
        return decision


@pytest.fixture(scope="module")
def model():
    return load_model(BASE, "float32")


def run(model, miss_policy, policy="on_demand", slots=8, prompts=PROMPTS, new_tokens=4, link="emulated(0.001,5)"):
    with serve(model, Variant.of(policy), slots, link, VirtualClock(), miss_policy=miss_policy, costs=COSTS) as session:
        tokens = [new_tokens] * len(prompts)
        answers = generate_batch(session, prompts, NoForecast(), max_new_tokens=tokens, stop_ids=(0,))
        logits = np.stack([answer.first_logits for answer in answers])
        assert not session.engine.pool.kept(slice(0, slots)).size
        return logits, [a.logits_digest for a in answers], session.engine.stats(), session.losses.rates()


@pytest.mark.parametrize("policy", POLICIES)
def test_to_defer_nothing_is_byte_identical_to_waiting(model, policy):
    assert run(model, "defer(experts=0)", policy)[1:] == run(model, "wait", policy)[1:]


def plain_walk(module, ids_T, deferred_LxE):
    """Logits [V] of the last token, each deferred expert's output added behind the next layer's."""
    length = len(ids_T)
    positions, _ = module.config.positions(ids_T[None], np.array([length], np.int32), None)
    x = module.embed_stage(jnp.asarray(ids_T[None]), None, None)
    mask = jnp.tril(jnp.ones((1, length, length), bool))
    waiting = jnp.zeros_like(x[0])
    for layer, experts, deferred_E in zip(module.layers, module.experts, deferred_LxE, strict=True):
        h, y, ids, weights, _ = layer.route_and_share(layer.attend(x, positions, mask), jnp.ones((1, length), bool))
        now, later = [], []
        for token in range(length):
            parts = {False: jnp.zeros_like(waiting[0]), True: jnp.zeros_like(waiting[0])}
            for expert, weight in zip(ids[0, token].tolist(), weights[0, token], strict=True):
                matrices = experts.gate_up[...][expert], experts.down[...][expert]
                parts[bool(deferred_E[expert])] += weight * run_expert(y[0, token][None], *matrices, experts.kind)[0]
            now.append(parts[False])
            later.append(parts[True])
        x = (h[0] + jnp.stack(now) + waiting)[None]
        waiting = jnp.stack(later)
    assert not waiting.any()
    return np.asarray(module.head_stage(x)[0, -1])


@pytest.mark.parametrize("slots", [1, 4, 12])
def test_logits_are_those_of_a_plain_walk_through_the_layers(model, slots):
    policy = Recorded()
    logits, *_, losses = run(model, policy, slots=slots, prompts=PROMPTS[:1], new_tokens=1)
    waiting = run(model, "wait", slots=slots, prompts=PROMPTS[:1], new_tokens=1)[0]
    deferred_LxE = np.array(policy._deferred)
    assert deferred_LxE[:-1].any()
    assert not deferred_LxE[-1].any()
    assert 0 < losses["deferred_rate"] < 0.5
    assert losses["dropped_rate"] == losses["exchanged_rate"] == losses["discarded_mass"] == 0
    wanted = plain_walk(checkpoints.load_model(BASE, jnp.float32), PROMPTS[0].input_ids, deferred_LxE)
    np.testing.assert_allclose(logits[0], wanted, rtol=1e-4, atol=1e-5)
    assert np.abs(logits - waiting).max() > 1e-4


@pytest.mark.parametrize("policy", POLICIES)
def test_the_same_experts_travel_and_less_of_it_is_waited_for(model, policy):
    _, digests, stats, losses = run(model, "defer", policy, slots=12, link="emulated(0.02,5)")
    assert run(model, "defer", policy, slots=12, link="emulated(0.02,5)")[1] == digests
    assert losses["deferred_rate"] > 0
    waiting = run(model, "wait", policy, slots=12, link="emulated(0.02,5)")[2]
    assert stats["layer_steps"] == waiting["layer_steps"]
    if policy in ("on_demand", "cache_moe"):  # nothing but misses travels
        misses = stats["late"] + stats["misses"]  # what was put off may have to give way, and comes once more
        assert misses <= stats["urgent_transfers"] <= 1.1 * misses
        assert stats["stall_seconds"] < waiting["stall_seconds"]
