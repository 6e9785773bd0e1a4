"""Lossless runs through any cache are bit-identical to the all-resident run of the same batches."""

import copy
import dataclasses
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parents[1]))
from model_parity import fused_forward
from random_module import random_module
from small_model import random_prompts, served, small_config

from expertflow_jax.errors import NumericError
from expertflow_jax.inference.forecasting import NoForecast, TrueForecast
from expertflow_jax.inference.generation import generate_batch
from expertflow_jax.inference.rows import group_shapes
from expertflow_jax.inference.sampling import Sampler
from expertflow_jax.inference.scoring import score_batch
from expertflow_jax.inference.session import InferenceSession
from expertflow_jax.models.device_form import INTERPRETED_POOL, REPLACED
from expertflow_jax.models.qwen3_vl_moe import Qwen3VLMoe
from expertflow_jax.offload.clock import RealClock, VirtualClock
from expertflow_jax.offload.engine import ExpertCacheEngine
from expertflow_jax.offload.misses import make_miss_policy
from expertflow_jax.offload.policies import POLICIES
from expertflow_jax.offload.policies.base import CachePolicy
from expertflow_jax.processing.batching import Prompt, pad_prompts
from expertflow_jax.simulation.costs import ComputeCosts, Line
from expertflow_jax.workloads.routes import TappedStages

COSTS = ComputeCosts(Line(1e-4, 1e-6), Line(1e-5, 1e-7), 1e-6, Line(1e-5, 0), Line(1e-4, 1e-6), Line(1e-4, 1e-6))
CONFIGS = {
    "plain": small_config(),
    "many experts": small_config(num_experts=16, num_experts_per_tok=3, num_hidden_layers=2),
    "some dense layers": small_config(mlp_only_layers=(1,), num_hidden_layers=3),
}
MODELS = {name: served(config) for name, config in CONFIGS.items()}  # compiled stages are shared by all tests


def answer(model, prompts, policy, slots, *, miss="wait", truth=None, clock=None, batch_size=None, stages=None):
    stages, store = stages or MODELS[model][0], MODELS[model][1]
    clock = clock or VirtualClock()
    link = "emulated(0.001,5)" if clock.virtual else "direct"
    engine = ExpertCacheEngine(store, slots, policy, link, clock, form=stages.form)
    engine.warm_up()
    engine.reset_stats()
    session = InferenceSession(stages, engine, make_miss_policy(miss), COSTS if clock.virtual else None)
    session.records = []
    forecaster = TrueForecast(truth) if truth is not None else NoForecast()
    new_tokens = [3 + i % 3 for i in range(len(prompts))]
    answers = generate_batch(
        session, prompts, forecaster, max_new_tokens=new_tokens, stop_ids=(0,), batch_size=batch_size
    )
    stats = engine.stats()
    engine.close()
    return [(a.token_ids, a.logits_digest) for a in answers], [r.needed for r in session.records], stats


@settings(max_examples=10, deadline=None)
@given(
    shape=st.sampled_from([("plain", 1), ("plain", 4), ("many experts", 4), ("some dense layers", 4)]),
    policy=st.sampled_from([name for name, policy in POLICIES.items() if policy.lossless and name != "resident"]),
    fraction=st.floats(0.01, 1.0),
    seed=st.integers(0, 50),
)
def test_lossless_is_bit_identical_to_resident(shape, policy, fraction, seed):
    model, count = shape
    config, (_, store) = CONFIGS[model], MODELS[model]
    prompts = random_prompts(config, count, np.random.default_rng(seed))
    total = store.num_layers * store.num_experts
    least = POLICIES[policy].least_slots(store.num_layers, store.num_experts)
    least = store.num_layers if policy == "cache_moe" else least
    expected, needed, _ = answer(model, prompts, "resident", total)
    truth = needed if policy in ("oracle", "expertflow") else None
    found, _, stats = answer(model, prompts, policy, max(least, int(fraction * total)), truth=truth)
    assert found == expected
    assert stats["peak_slot_bytes"] <= stats["slots"] * store.expert_bytes


def test_the_real_clock_gives_the_same_bits():
    prompts = random_prompts(CONFIGS["plain"], 4, np.random.default_rng(3))
    expected, needed, _ = answer("plain", prompts, "resident", 24)
    found, _, _ = answer("plain", prompts, "expertflow", 6, truth=needed, clock=RealClock())
    assert found == expected


@pytest.mark.parametrize(
    ("form", "count"),
    [
        (REPLACED, 1),
        pytest.param(REPLACED, 4, marks=pytest.mark.slow),
        pytest.param(INTERPRETED_POOL, 4, marks=pytest.mark.slow),
    ],
)
def test_the_arguments_of_a_gpu_give_the_same_bits_as_resident_with_them(form, count):
    stages = MODELS["plain"][0].with_form(form)
    prompts = random_prompts(CONFIGS["plain"], count, np.random.default_rng(3))
    expected, needed, _ = answer("plain", prompts, "resident", 24, stages=stages)
    for clock in (VirtualClock, RealClock):
        for policy, slots in (("on_demand", 1), ("expertflow", 6)):
            truth = needed if policy == "expertflow" else None
            answers, _, stats = answer("plain", prompts, policy, slots, truth=truth, clock=clock(), stages=stages)
            assert answers == expected
            assert stats["bytes_transferred"] > 0


def test_experts_in_a_pool_give_the_same_bits_as_resident_there():
    """A GPU's whole way, on CPU: the kernel over the pool, staged arrivals, slots that are read given away last."""
    stages = MODELS["plain"][0].with_form(dataclasses.replace(INTERPRETED_POOL, reads_last=True))
    prompts = [Prompt(np.array([7], np.int32))]  # so few rows that two kernels are compiled
    expected, _, _ = answer("plain", prompts, "resident", 24, stages=stages)
    answers, _, stats = answer("plain", prompts, "on_demand", 5, clock=RealClock(), stages=stages)
    assert answers == expected
    assert stats["urgent_transfers"] > 0
    own_arrays, _, _ = answer("plain", prompts, "resident", 24)
    assert [tokens for tokens, _ in answers] == [tokens for tokens, _ in own_arrays]


@pytest.mark.parametrize(
    ("model", "count"),
    [
        ("plain", 1),
        ("some dense layers", 4),
        pytest.param("plain", 4, marks=pytest.mark.slow),
        pytest.param("some dense layers", 1, marks=pytest.mark.slow),
    ],
)
def test_decoding_in_one_call_gives_the_same_bits_and_counts(model, count):
    prompts = random_prompts(CONFIGS[model], count, np.random.default_rng(8))
    stages, store = MODELS[model]
    slots = store.num_layers * store.num_experts
    assert stages.selects(count)
    expected, needed, stats = answer(model, prompts, "resident", slots)
    compiled = stages.group_compilations()
    answers, asked, at_once = answer(model, prompts, "resident", slots, clock=RealClock())
    assert answers == expected
    assert all((a == b).all() for a, b in zip(asked, needed, strict=True))
    for key in ("hits", "late", "misses", "layer_steps", "steps", "bytes_transferred"):
        assert at_once[key] == stats[key]
    assert stages.group_compilations() == compiled
    tapped = TappedStages(stages)
    overheard, _, _ = answer(model, prompts, "resident", slots, clock=RealClock(), stages=tapped)
    assert overheard == expected
    assert len(tapped.heard) == at_once["layer_steps"]


@pytest.mark.parametrize("miss", ["drop", "substitute"])
def test_lossy_runs_are_reproducible_and_differ(miss):
    prompts = random_prompts(CONFIGS["plain"], 4, np.random.default_rng(1))
    expected, _, _ = answer("plain", prompts, "resident", 24)
    first = answer("plain", prompts, "cache_moe", 4, miss=miss)
    again = answer("plain", prompts, "cache_moe", 4, miss=miss)
    assert first[0] == again[0]
    assert first[2] == again[2]
    assert first[0] != expected


@pytest.mark.parametrize("policy", ["on_demand", "expertflow"])
def test_careful_misses_with_a_threshold_of_zero_are_byte_identical_to_waiting(policy):
    config = CONFIGS["many experts"]
    prompts = random_prompts(config, 4, np.random.default_rng(5))
    waiting, needed, stats = answer("many experts", prompts, policy, 12)
    for miss in ("drop_weak(below=0, phase='both')", "drop_light(mass=0)", "cache_prior(strength=0)"):
        careful, needed_too, stats_too = answer("many experts", prompts, policy, 12, miss=miss)
        assert careful == waiting
        np.testing.assert_array_equal(needed, needed_too)
        assert stats_too == stats


def test_careful_misses_wait_for_what_matters():
    config = CONFIGS["many experts"]
    prompts = random_prompts(config, 4, np.random.default_rng(6))
    waiting, _, stats = answer("many experts", prompts, "on_demand", 12)
    dropping, _, dropped = answer("many experts", prompts, "on_demand", 12, miss="drop")
    careful, _, some = answer("many experts", prompts, "on_demand", 12, miss="drop_light(mass=0.2)")
    assert careful not in (waiting, dropping)
    assert dropped["stall_seconds"] == 0 < some["stall_seconds"] < stats["stall_seconds"]
    assert some["urgent_transfers"] > 0


def test_padding_a_batch_with_empty_sequences_changes_no_answer():
    prompts = random_prompts(CONFIGS["plain"], 3, np.random.default_rng(5))
    plain, _, _ = answer("plain", prompts, "resident", 24)
    padded, _, _ = answer("plain", prompts, "resident", 24, batch_size=4)
    assert [tokens for tokens, _ in plain] == [tokens for tokens, _ in padded]


@pytest.mark.parametrize("model", sorted(CONFIGS))
def test_prefill_agrees_with_the_fused_forward(model):
    config = CONFIGS[model]
    stages, store = MODELS[model]
    module = random_module(Qwen3VLMoe, config)
    batch = pad_prompts(config, random_prompts(config, 4, np.random.default_rng(4)))
    assert batch.pixel_values is not None
    fused = fused_forward(module, batch)
    engine = ExpertCacheEngine(store, store.num_layers * store.num_experts, "resident", "direct", VirtualClock())
    engine.warm_up()
    session = InferenceSession(stages, engine, make_miss_policy("wait"), COSTS)
    session.records = []
    x, visual = session.embed(batch)
    hidden = session.prefill(batch, session.start(batch, 4), x, visual, None)
    logits = np.asarray(stages.head(hidden))
    valid = np.arange(logits.shape[1]) < batch.lengths[:, None]
    np.testing.assert_allclose(logits[valid], np.asarray(fused.logits)[valid], rtol=1e-4, atol=1e-4)
    chosen = np.asarray(fused.expert_ids).transpose(0, 2, 1, 3)
    assert (session.records[0].expert_ids == chosen).all()


def test_compilations_do_not_grow_with_layers_or_steps():
    prompts = random_prompts(CONFIGS["plain"], 4, np.random.default_rng(7))
    answer("plain", prompts, "resident", 24)
    before = MODELS["plain"][0].compilations()
    answer("plain", prompts, "on_demand", 5)
    answer("plain", prompts, "on_demand", 5)
    grown = MODELS["plain"][0].compilations() - before
    answer("plain", prompts, "on_demand", 5)
    assert MODELS["plain"][0].compilations() - before == grown


def test_after_precompilation_no_group_of_experts_is_compiled_any_more():
    config = small_config(num_experts=12, num_hidden_layers=2)
    stages, store = served(config)
    prompts = [Prompt(np.arange(5, 9 + length, dtype=np.int32)) for length in range(2)]
    batch = pad_prompts(config, prompts)
    stages.precompile(2, [1, batch.input_ids.shape[1]])
    made = stages.group_compilations()
    top_k, tokens = config.text.num_experts_per_tok, batch.input_ids.size
    assert made == len(group_shapes(2, top_k, 12)) + len(group_shapes(tokens, top_k, 12))
    for slots in (24, 3, 7):
        with ExpertCacheEngine(store, slots, "on_demand", "emulated(0.001,5)", VirtualClock()) as engine:
            session = InferenceSession(stages, engine, make_miss_policy("wait"), COSTS)
            generate_batch(session, prompts, NoForecast(), max_new_tokens=[4] * 2, stop_ids=())
    assert stages.group_compilations() == made


@pytest.mark.parametrize(
    ("fault", "how"),
    [
        ("embeddings", "greedy"),
        ("layer 1", "sampled"),
        ("layer 1", "scored"),
        ("layer 1", "prompts"),
        ("head", "greedy"),
    ],
)
def test_numbers_that_are_none_are_an_error_that_names_where_they_arise(fault, how):
    config, (stages, store) = CONFIGS["plain"], MODELS["plain"]
    prompts = random_prompts(config, 4, np.random.default_rng(9))
    with ExpertCacheEngine(store, 8, "on_demand", "emulated(0.001,5)", VirtualClock()) as engine:
        engine.warm_up()
        session = InferenceSession(spoilt(stages, fault), engine, make_miss_policy("wait"), COSTS)
        with pytest.raises(NumericError, match=f"first in (the |the input )?{fault}:"):
            run_through(session, prompts, how)


def run_through(session, prompts, how):
    if how == "scored":
        score_batch(session, prompts, NoForecast())
    elif how == "prompts":  # nobody holds their keys and values any more, as behind `OffloadedModel.logits`
        batch = pad_prompts(session.stages.config, prompts)
        x, visual = session.embed(batch)
        session.last_logits(session.prefill(batch, session.start(batch, 0), x, visual, None), batch.lengths)
    else:
        sampler = Sampler(1.0 if how == "sampled" else 0.0)
        generate_batch(session, prompts, NoForecast(), max_new_tokens=[3] * 4, stop_ids=(), sampler=sampler)


def spoilt(stages, fault):
    """The same compiled stages with infinite weights in one place."""
    other = copy.copy(stages)
    if fault == "layer 1":
        other.layer_weights = list(stages.layer_weights)
        other.layer_weights[1] = tuple(weights * np.inf for weights in stages.layer_weights[1])
    else:
        part = "embed_tokens" if fault == "embeddings" else "norm"

        def spoil(path, weights):
            return weights * np.inf if path[0].key == part else weights

        other.trunk_weights = tuple(jax.tree.leaves(jax.tree_util.tree_map_with_path(spoil, stages.trunk)))
    return other


@pytest.mark.parametrize(
    ("layer", "part", "place"),
    [
        (None, "embed_tokens", "the input embeddings"),
        (None, "patch_embed", "the input embeddings"),
        (1, "o_proj", "layer 1"),
        (1, "q_proj", "layer 1"),
        (2, "o_proj", "layer 2"),
    ],
)
def test_finite_numbers_whose_squares_overflow_in_a_norm_are_an_error_too(layer, part, place):
    config, (stages, store) = CONFIGS["plain"], MODELS["plain"]
    prompts = random_prompts(config, 4, np.random.default_rng(9))
    assert any(prompt.pixel_values is not None for prompt in prompts)

    def enlarge(path, weights):
        return weights * 1e25 if any(getattr(key, "key", None) == part for key in path) else weights

    huge = copy.copy(stages)
    if layer is None:
        huge.trunk_weights = tuple(jax.tree.leaves(jax.tree_util.tree_map_with_path(enlarge, stages.trunk)))
    else:
        huge.layer_weights = list(stages.layer_weights)
        state = jax.tree_util.tree_map_with_path(enlarge, stages.layer_states[layer])
        huge.layer_weights[layer] = tuple(jax.tree.leaves(state))
    with ExpertCacheEngine(store, 8, "on_demand", "emulated(0.001,5)", VirtualClock()) as engine:
        session = InferenceSession(huge, engine, make_miss_policy("wait"), COSTS)
        with pytest.raises(NumericError, match=f"first in {place}:"):
            run_through(session, prompts, "greedy")


class NextRouter(CachePolicy):
    """Fetches what the next layer's router would choose on this layer's hidden state (2312.17238)."""

    name = "next_router"
    prefetches = True
    forecast = "hidden"

    def __init__(self):
        self.queue: list[int] = []
        self.asked_about: list[int] = []

    def observe_hidden(self, layer, router_probs, top_k):
        np.testing.assert_allclose(router_probs.sum(1), 1, rtol=1e-5)
        self.asked_about.append(layer)
        guesses = np.unique(np.argsort(-router_probs, axis=1)[:, :top_k])
        self.queue = (layer * self.num_experts + guesses).tolist()

    def next_prefetch(self):
        return next((key for key in self.queue if self.slots.slot_of[key] < 0), -1)


def test_a_policy_that_asks_for_hidden_states_is_told_what_the_next_router_says():
    prompts = random_prompts(CONFIGS["plain"], 4, np.random.default_rng(2))
    expected, _, resident = answer("plain", prompts, "resident", 24)
    policy = NextRouter()
    found, _, stats = answer("plain", prompts, policy, 9)
    assert found == expected
    layers = MODELS["plain"][1].num_layers
    assert policy.asked_about == [*range(1, layers)] * stats["steps"]
    assert stats["prefetches"] > 0
    assert stats["compute_seconds"] > resident["compute_seconds"]  # asking is not free
