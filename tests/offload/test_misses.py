"""Lossy miss policies keep each token's weight, run only what has arrived, and leave complete tokens alone."""

import numpy as np
import pytest
from hypothesis import given, settings
from random_routing import routings

from expertflow_jax.errors import InputError
from expertflow_jax.offload.misses import MISS_POLICIES, make_miss_policy


@pytest.mark.parametrize("name", ["drop", "substitute"])
@settings(max_examples=100, deadline=None)
@given(routings())
def test_only_arrived_experts_run_and_each_tokens_weight_is_kept(name, routing):
    ids, weights, _, usable = routing
    before = [a.copy() for a in routing]
    new_ids, new_weights = make_miss_policy(name).resolve(*routing)
    for array, copy in zip(routing, before, strict=True):
        np.testing.assert_array_equal(array, copy)
    assert (new_ids.dtype, new_weights.dtype) == (ids.dtype, weights.dtype)
    runs = new_ids >= 0
    assert usable[new_ids[runs]].all()
    assert (new_weights[~runs] == 0).all()
    for token in range(len(ids)):
        chosen = new_ids[token][runs[token]]
        assert len(set(chosen.tolist())) == len(chosen)
        if len(chosen):
            np.testing.assert_allclose(new_weights[token].sum(), weights[token].sum(), rtol=1e-5)
        if usable[ids[token][ids[token] >= 0]].all():
            np.testing.assert_array_equal(new_ids[token], ids[token])
            np.testing.assert_array_equal(new_weights[token], weights[token])


@settings(max_examples=100, deadline=None)
@given(routings())
def test_drop_keeps_the_proportions_of_what_is_left(routing):
    ids, weights, _, usable = routing
    new_ids, new_weights = make_miss_policy("drop").resolve(*routing)
    here = (ids >= 0) & usable[np.maximum(ids, 0)]
    np.testing.assert_array_equal(new_ids, np.where(here, ids, -1))
    for token in range(len(ids)):
        kept = weights[token][here[token]]
        if kept.sum() > 0:
            np.testing.assert_allclose(
                new_weights[token][here[token]], kept / kept.sum() * weights[token].sum(), rtol=1e-5
            )


@settings(max_examples=100, deadline=None)
@given(routings())
def test_substitute_takes_the_best_arrived_experts_in_the_routers_order(routing):
    ids, _, probs, usable = routing
    new_ids, new_weights = make_miss_policy("substitute").resolve(*routing)
    for token in range(len(ids)):
        taken = {int(e) for e in ids[token] if e >= 0 and usable[e]}
        expected = []
        for expert in ids[token]:
            if expert >= 0 and not usable[expert]:
                free = [e for e in range(len(usable)) if usable[e] and e not in taken]
                expert = max(free, key=lambda e: (probs[token, e], -e), default=-1)
                taken.add(int(expert))
            expected.append(int(expert))
        assert new_ids[token].tolist() == expected
        if (new_ids[token] != ids[token]).any() and (new_ids[token] >= 0).any():
            runs = new_ids[token] >= 0
            parts = probs[token][new_ids[token][runs]]
            np.testing.assert_allclose(
                new_weights[token][runs] * parts.sum(), parts * new_weights[token].sum(), rtol=1e-4, atol=1e-7
            )


def test_wait_changes_nothing():
    ids, weights = np.array([[1, 0]], np.int32), np.array([[0.7, 0.3]], np.float32)
    new_ids, new_weights = make_miss_policy("wait").resolve(ids, weights, weights, np.zeros(2, bool))
    assert new_ids is ids
    assert new_weights is weights


def test_names_are_looked_up_with_a_suggestion():
    assert [name for name, policy in MISS_POLICIES.items() if policy.lossless] == ["wait"]
    assert make_miss_policy("wait").lossless
    with pytest.raises(InputError, match="did you mean 'substitute'"):
        make_miss_policy("subsitute")
