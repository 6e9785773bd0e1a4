"""Careful miss policies lose only what their rule allows, where it is allowed, and nothing with a threshold of zero."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from random_routing import routings

from expertflow_jax.errors import InputError
from expertflow_jax.offload.misses import MISS_POLICIES, LayerStep, make_miss_policy
from expertflow_jax.offload.misses.base import shares, third
from expertflow_jax.offload.misses.buddy import coactivation
from expertflow_jax.offload.misses.losses import Losses
from expertflow_jax.routing.trace import RoutingTrace

CAREFUL = (
    "drop_weak(below=1.5, phase='both')",
    "drop_light(mass=0.2)",
    "cache_prior(strength=0.5)",
    "low_precision(t1=0.3, t2=0.6)",
)
NOTHING = (
    "drop_weak(below=0, phase='both')",
    "drop_light(mass=0)",
    "cache_prior(strength=0)",
    "low_precision(t1=1, t2=1)",
    "defer(experts=0)",
    "buddy(flat=1.1)",
    "wait",
)


@st.composite
def layer_steps(draw):
    routing = draw(routings(2, 9))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    image, prefill = random.random((2, len(routing[0]))) < 0.5
    return LayerStep(draw(st.integers(0, 5)), 6, *routing, image, prefill)


def made_step(ids_NK, weights_NK, probs_NE, usable):
    """A decode step of the first of two layers."""
    text = np.zeros(len(ids_NK), bool)
    return LayerStep(0, 2, ids_NK, weights_NK, probs_NE, usable, text, text)


def lost(step, decision):
    """Choices of the router that do not run: bool [N, K]."""
    runs = (step.expert_ids[:, :, None] == decision.expert_ids[:, None, :]).any(axis=2)
    return (step.expert_ids >= 0) & ~runs


@pytest.mark.parametrize("name", [*CAREFUL, "drop", "substitute", "fewer_experts(top_k=1)"])
@settings(max_examples=60, deadline=None)
@given(layer_steps())
def test_weights_keep_each_tokens_total_and_untouched_tokens_their_bits(name, step):
    decision = make_miss_policy(name).decide(step)
    assert decision.expert_ids.dtype == step.expert_ids.dtype
    assert decision.weights.dtype == step.weights.dtype
    assert (decision.weights[decision.expert_ids < 0] == 0).all()
    changed = (decision.expert_ids != step.expert_ids).any(axis=1)
    np.testing.assert_array_equal(decision.weights[~changed], step.weights[~changed])
    runs = (decision.expert_ids >= 0).any(axis=1)
    np.testing.assert_allclose(decision.weights[runs].sum(1), step.weights[runs].sum(1), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", NOTHING)
@settings(max_examples=30, deadline=None)
@given(layer_steps())
def test_a_threshold_of_zero_loses_nothing(name, step):
    decision = make_miss_policy(name).decide(step)
    assert decision.as_chosen
    assert decision.expert_ids is step.expert_ids
    assert decision.weights is step.weights


@settings(max_examples=100, deadline=None)
@given(layer_steps(), st.sampled_from([0.5, 1.0, 2.0]))
def test_drop_weak_drops_what_is_absent_weak_and_awaited_by_nobody(step, below):
    decision = make_miss_policy("drop_weak", below=below, phase="both").decide(step)
    top_k = step.expert_ids.shape[1]
    gone = lost(step, decision)
    assert not gone[:, 0].any()
    for token, k in np.argwhere(gone):
        expert = step.expert_ids[token, k]
        assert not step.usable[expert]
        assert expert not in decision.expert_ids
        for other in np.flatnonzero((step.expert_ids == expert).any(axis=1)):
            place = step.expert_ids[other].tolist().index(expert)
            assert place > 0
            assert shares(step.weights)[other, place] < below / top_k
    for token, k in np.argwhere((step.expert_ids >= 0) & ~gone):  # nobody waits for what all may do without
        expert = step.expert_ids[token, k]
        if not step.usable[expert]:
            rows, places = np.nonzero(step.expert_ids == expert)
            assert (places == 0).any() or (shares(step.weights)[rows, places] >= below / top_k).any()


def test_buddies_without_a_record_are_those_that_the_run_has_met(tmp_path):
    trace, path = recorded(tmp_path)
    counting = make_miss_policy("buddy", flat=0)
    for layer in range(trace.num_layers):
        ids_NK = trace.experts[:, :, layer].reshape(-1, trace.top_k)
        equal = np.full(ids_NK.shape, 1 / trace.top_k, np.float32)
        text, usable = np.zeros(len(ids_NK), bool), np.zeros(trace.num_experts, bool)
        probs_NE = np.full((len(ids_NK), trace.num_experts), 1 / trace.num_experts, np.float32)
        met = LayerStep(layer, trace.num_layers, ids_NK, equal, probs_NE, usable, text, text)
        assert counting.decide(met).as_chosen  # nothing has arrived that could stand in
    some = LayerStep(
        0, trace.num_layers, ids_NK[:6], equal[:6], probs_NE[:6], np.arange(8) % 2 == 0, text[:6], text[:6]
    )
    knowing = make_miss_policy("buddy", flat=0, trace=path)
    np.testing.assert_array_equal(counting.decide(some).expert_ids, knowing.decide(some).expert_ids)


@settings(max_examples=100, deadline=None)
@given(layer_steps(), st.integers(0, 3))
def test_defer_puts_off_what_is_absent_and_last_for_all(step, experts):
    decision = make_miss_policy("defer", experts=experts).decide(step)
    np.testing.assert_array_equal(decision.expert_ids, step.expert_ids)
    deferred = np.zeros(len(step.usable), bool) if decision.deferred is None else decision.deferred
    first_deferred = max(1, step.expert_ids.shape[1] - experts)
    for expert in np.unique(step.expert_ids[step.expert_ids >= 0]).tolist():
        ranks = np.nonzero(step.expert_ids == expert)[1]
        may = not step.usable[expert] and ranks.min() >= first_deferred and step.layer < step.num_layers - 1
        assert deferred[expert] == may


@settings(max_examples=100, deadline=None)
@given(layer_steps(), st.sampled_from([0.05, 0.3, 1.0]))
def test_drop_light_drops_the_lightest_absent_experts_within_its_mass(step, mass):
    decision = make_miss_policy("drop_light", mass=mass).decide(step)
    gone, chosen, share = lost(step, decision), step.expert_ids >= 0, shares(step.weights)
    assert share[gone].sum() <= mass * share[chosen].sum() + 1e-4
    weight = {e: share[step.expert_ids == e].sum() for e in np.unique(step.expert_ids[chosen]).tolist()}
    dropped = set(step.expert_ids[gone].tolist())
    awaited = {e for e in weight if not step.usable[e]} - dropped
    assert not any(step.usable[list(dropped)])
    assert all(weight[a] <= weight[b] + 1e-5 for a in dropped for b in awaited)
    if mass == 1:
        assert not awaited or share[chosen].sum() == pytest.approx(sum(weight.values()))


@settings(max_examples=100, deadline=None)
@given(layer_steps(), st.integers(0, 3))
def test_cache_prior_keeps_the_first_choices_and_exchanges_only_for_what_has_arrived(step, top_j):
    decision = make_miss_policy("cache_prior", strength=0.7, top_j=top_j).decide(step)
    gone = lost(step, decision)
    assert not gone[:, :top_j].any()
    assert not step.usable[step.expert_ids[gone]].any()
    for token in np.flatnonzero(gone.any(axis=1)):
        new = set(decision.expert_ids[token].tolist()) - set(step.expert_ids[token].tolist())
        assert len(new) == gone[token].sum()
        assert step.usable[list(new)].all()
        parts = step.router_probs[token][decision.expert_ids[token]]
        np.testing.assert_allclose(decision.weights[token] * parts.sum(), parts * step.weights[token].sum(), rtol=1e-3)


def test_a_stronger_prior_exchanges_more():
    random = np.random.default_rng(0)
    probs_NE = random.dirichlet(np.full(16, 0.5), 200).astype(np.float32)
    ids_NK = np.argsort(-probs_NE, axis=1)[:, :4].astype(np.int32)
    weights_NK = np.take_along_axis(probs_NE, ids_NK, axis=1)
    step = made_step(ids_NK, weights_NK, probs_NE, np.arange(16) % 2 == 0)
    exchanged = [lost(step, make_miss_policy("cache_prior", strength=s).decide(step)).sum() for s in (0.05, 0.2, 1.0)]
    assert 0 < exchanged[0] < exchanged[1] < exchanged[2]


def recorded(folder, experts=8, top_k=3):
    random = np.random.default_rng(2)
    paths_NTLK = np.argsort(random.random((20, 5, 2, experts)), axis=-1)[..., :top_k]
    trace = RoutingTrace(paths_NTLK.astype(np.int32), experts)
    trace.save(folder / "trace.npz")
    return trace, str(folder / "trace.npz")


def test_coactivation_counts_tokens_that_chose_both(tmp_path):
    trace, _ = recorded(tmp_path)
    together = coactivation(trace)
    for a, b in ((0, 1), (3, 5), (4, 4)):
        both = [(a in path) and (b in path) and a != b for path in trace.experts[:, :, 1].reshape(-1, 3).tolist()]
        assert together[1, a, b] == sum(both)


def test_buddies_take_the_place_of_missing_experts_where_all_gates_are_flat(tmp_path):
    trace, path = recorded(tmp_path)
    ids_NK = np.array([[0, 1, 2], [3, 1, 4], [5, 6, 7]], np.int32)
    weights_NK = np.array([[0.4, 0.3, 0.3], [0.35, 0.33, 0.32], [0.98, 0.01, 0.01]], np.float32)
    usable = np.isin(np.arange(8), [0, 3, 4, 5, 7])  # 1 and 2 are missing for flat gates, 6 for a steep one
    step = made_step(ids_NK, weights_NK, np.full((3, 8), 1 / 8, np.float32), usable)
    decision = make_miss_policy("buddy", trace=path, flat=0.9).decide(step)
    together = coactivation(trace)[0]
    assert decision.expert_ids[2].tolist() == [5, 6, 7]
    assert decision.expert_ids[1, [0, 2]].tolist() == [3, 4]
    assert decision.expert_ids[1, 1] == max([0, 5, 7], key=lambda e: (together[1, e], -e))
    assert len(set(decision.expert_ids[0].tolist())) == 3
    assert usable[decision.expert_ids[0]].all()
    np.testing.assert_array_equal(decision.weights, weights_NK)
    assert make_miss_policy("buddy", trace=path, flat=1.01).decide(step).as_chosen
    with pytest.raises(InputError, match="the model has 2 of 9"):
        make_miss_policy("buddy", trace=path).decide(
            made_step(ids_NK, weights_NK, np.full((3, 9), 1 / 9, np.float32), np.ones(9, bool))
        )


@settings(max_examples=100, deadline=None)
@given(layer_steps(), st.sampled_from([(0.6, 0.9), (0.0, 0.3), (-1.0, 1.0), (-1.0, -1.0)]))
def test_low_precision_brings_an_expert_in_the_best_form_that_a_token_wants(step, thresholds):
    t1, t2 = thresholds
    decision = make_miss_policy("low_precision", t1=t1, t2=t2).decide(step)
    share = shares(step.weights)
    before_NK = np.cumsum(share, axis=1) - share
    gone = lost(step, decision)
    copies = set(np.flatnonzero(decision.quantized)) if decision.quantized is not None else set()
    for expert in range(len(step.usable)):
        if step.usable[expert] or not (step.expert_ids == expert).any():
            assert expert not in copies
            assert not gone[step.expert_ids == expert].any()
            continue
        least = before_NK[step.expert_ids == expert].min()
        if abs(least - t1) < 1e-5 or abs(least - t2) < 1e-5:
            continue
        assert (expert in copies) == (t1 < least < t2)
        assert gone[step.expert_ids == expert].all() == (least > t2)
        assert gone[step.expert_ids == expert].any() == (least > t2)


@pytest.mark.parametrize("name", ["drop", "substitute", "drop_light", "fewer_experts"])
@settings(max_examples=40, deadline=None)
@given(
    layer_steps(),
    st.sampled_from(["both", "decode", "prefill"]),
    st.sampled_from(["both", "image", "text"]),
    st.sampled_from(["all", "early", "middle", "late"]),
)
def test_switches_say_where_losses_are_allowed(name, step, phase, tokens, layers):
    policy = make_miss_policy(name, phase=phase, tokens=tokens, layers=layers)
    gone = lost(step, policy.decide(step)).any(axis=1)
    allowed = np.full(len(gone), layers in ("all", third(step.layer, 6)))
    if phase != "both":
        allowed &= step.prefill == (phase == "prefill")
    if tokens != "both":
        allowed &= step.image == (tokens == "image")
    assert not gone[~allowed].any()
    if allowed.all() and name != "drop_light":
        plain = make_miss_policy(name).decide(step)
        np.testing.assert_array_equal(policy.decide(step).expert_ids, plain.expert_ids)


def test_thirds_of_the_layers():
    assert [third(layer, 6) for layer in range(6)] == ["early"] * 2 + ["middle"] * 2 + ["late"] * 2
    assert [third(layer, 4) for layer in range(4)] == ["early", "early", "middle", "late"]


@pytest.mark.parametrize("name", [*CAREFUL, "drop", "substitute", "wait"])
@settings(max_examples=30, deadline=None)
@given(layer_steps())
def test_losses_are_counted(name, step):
    decision = make_miss_policy(name).decide(step)
    losses = Losses()
    losses.add(step, decision)
    gone, chosen, share = lost(step, decision), step.expert_ids >= 0, shares(step.weights)
    new = [set(a[a >= 0]) - set(b) for a, b in zip(decision.expert_ids, step.expert_ids, strict=True)]
    rates, choices = losses.rates(), max(int(chosen.sum()), 1)
    assert rates["exchanged_rate"] * choices == pytest.approx(sum(map(len, new)))
    assert rates["dropped_rate"] * choices == pytest.approx(gone.sum() - sum(map(len, new)))
    assert rates["discarded_mass"] == pytest.approx(share[gone].sum() / max(share[chosen].sum(), 1e-9), abs=1e-5)


def test_options_are_recorded_with_their_defaults():
    assert make_miss_policy("wait").options == ""
    assert make_miss_policy("drop_weak").options == "below=1.0, layers='all', phase='decode', tokens='both'"
    assert all(make_miss_policy(name).options for name in MISS_POLICIES if name != "wait")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("drop_weak(below=-1)", "below=-1; want a number from 0 up"),
        ("drop_weak(below='a')", "below='a'; want a number from 0 up"),
        ("drop_light(mass=2)", r"mass=2; want a number from 0 to 1"),
        ("cache_prior(strength=-1)", "strength=-1; want"),
        ("cache_prior(top_j=0.5)", "top_j=0.5; want a whole number"),
        ("fewer_experts(top_k=0)", "top_k=0; want a whole number from 1 up"),
        ("buddy(trace=3)", "trace is a path"),
        ("buddy(trace='nowhere.npz')", "nowhere.npz"),
        ("low_precision(bits=2)", "bits=2; want 8 or 4"),
        ("low_precision(t1=0.9, t2=0.5)", "t2=0.5 is below t1=0.9"),
        ("drop(phase='prefil')", "did you mean 'prefill'"),
        ("drop(tokens='images')", "did you mean 'image'"),
        ("drop(layers='first')", "does not exist"),
    ],
)
def test_options_that_cannot_be_are_refused(name, words):
    with pytest.raises(InputError, match=words):
        make_miss_policy(name)


def test_a_step_is_not_written_to():
    random = np.random.default_rng(1)
    probs_NE = random.dirichlet(np.full(8, 0.5), 20).astype(np.float32)
    ids_NK = np.argsort(-probs_NE, axis=1)[:, :3].astype(np.int32)
    weights_NK = np.take_along_axis(probs_NE, ids_NK, axis=1)
    step = made_step(ids_NK, weights_NK, probs_NE, np.arange(8) < 3)
    before = {name: np.copy(value) for name, value in vars(step).items() if isinstance(value, np.ndarray)}
    for name in [*CAREFUL, "drop", "substitute", "fewer_experts"]:
        make_miss_policy(name).decide(step)
    for name, value in before.items():
        np.testing.assert_array_equal(getattr(step, name), value)
