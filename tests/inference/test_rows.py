"""Rows: every (token, choice) pair is computed once, and how it is computed depends on the routing alone."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from expertflow_jax.inference.rows import NO_EXPERT, expert_rows, group_shapes, tile_rows, tiles_among
from expertflow_jax.models.device_form import IN_PLACE, POOL, REPLACED
from expertflow_jax.processing.batching import bucket

FORMS = st.sampled_from([IN_PLACE, REPLACED, POOL])


@st.composite
def routings(draw):
    tokens, top_k, experts = draw(st.integers(1, 40)), draw(st.integers(1, 4)), draw(st.integers(4, 12))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    ids = np.stack([random.permutation(experts)[:top_k] for _ in range(tokens)]).astype(np.int32)
    ids[random.random(tokens) < 0.2] = -1
    return ids, experts


@settings(max_examples=100, deadline=None)
@given(routings(), st.randoms(use_true_random=False), FORMS)
def test_groups_cover_every_row_once_with_its_expert(routing, random, form):
    ids, num_experts = routing
    rows = expert_rows(ids, num_experts, form)
    experts = [int(e) for e in rows.needed]
    random.shuffle(experts)
    covered = []
    for positions, group in rows.groups(experts):
        assert (group[len(positions) :] == ids.size).all()  # tiles of nothing at the end
        for position, row in zip(positions, group[: len(positions)], strict=True):
            real = row[row < ids.size]
            assert (ids.reshape(-1)[real] == experts[position]).all()
            assert len(row) == (tile_rows(*ids.shape, num_experts) if form.pooled else rows.padded(experts[position]))
            covered.extend(real.tolist())
    assert sorted(covered) == np.flatnonzero(ids.reshape(-1) >= 0).tolist()


@settings(max_examples=50, deadline=None)
@given(routings(), st.integers(1, 5))
def test_an_experts_rows_do_not_depend_on_the_round_it_is_in(routing, size):
    ids, num_experts = routing
    rows = expert_rows(ids, num_experts)

    def layout(rounds):
        found = {}
        for experts in rounds:
            for positions, group in rows.groups(experts):
                found |= {experts[p]: tuple(row) for p, row in zip(positions, group, strict=True)}
        return found

    needed = rows.needed.tolist()
    parts = [needed[i : i + size] for i in range(0, len(needed), size)]
    assert layout([needed]) == layout(parts) == layout(parts[::-1])


@settings(max_examples=100, deadline=None)
@given(routings(), st.integers(1, 5), FORMS)
def test_every_group_is_one_of_those_that_are_compiled_beforehand(routing, size, form):
    ids, num_experts = routing
    rows = expert_rows(ids, num_experts, form)
    needed = rows.needed.tolist()
    shapes = set(group_shapes(*ids.shape, num_experts, form=form))
    known = set(group_shapes(*ids.shape, num_experts, int(rows.counts.max(initial=1)), form))
    assert all(padding >= form.least_rows for _, padding in shapes)
    assert known <= shapes
    for experts in [needed, *(needed[i : i + size] for i in range(0, len(needed), size))]:
        assert {group.shape for _, group in rows.groups(experts)} <= known


def test_batches_of_8_up_to_1024_tokens_need_at_most_650_groups_and_a_decode_step_8():
    lengths = {bucket(length) for length in range(1, 1025)}
    assert sum(len(group_shapes(8 * length, 8, 128)) for length in {1, *lengths}) <= 650
    assert len(group_shapes(8, 8, 128)) <= 8
    assert max(len(group_shapes(8 * length, 8, 128)) for length in lengths) <= 32


@settings(max_examples=100, deadline=None)
@given(routings())
def test_rows_are_in_the_order_of_tokens_within_an_expert(routing):
    ids, num_experts = routing
    rows = expert_rows(ids, num_experts)
    flat = ids.reshape(-1)
    assert (rows.order == np.argsort(np.where(flat < 0, num_experts, flat), kind="stable")).all()
    assert (rows.counts == [(flat == expert).sum() for expert in range(num_experts)]).all()


@pytest.mark.parametrize("none", [0.0, 0.3, 1.0])
def test_the_device_finds_the_rows_that_the_host_does(none):
    random = np.random.default_rng(0)
    ids = np.stack([random.permutation(12)[:3] for _ in range(8)]).astype(np.int32)
    ids[random.random(8) < none] = -1
    rows = expert_rows(ids, 12, POOL)
    for positions, group in rows.groups(range(12)):
        numbers = np.array([*positions, *[NO_EXPERT] * (len(group) - len(positions))], np.int32)
        np.testing.assert_array_equal(tiles_among(ids, numbers, group.shape[1]), group)
