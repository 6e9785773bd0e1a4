"""Recorded batches joined to blocks: what runs together, what is foreseen of it, and when nobody has to foresee it."""

import numpy as np
import pytest

from expertflow_jax.predictor.forecast import combine_batches, combine_sequences, wants_nearly_all
from expertflow_jax.simulation.replay import ReplayStep
from expertflow_jax.workloads.recorded import RecordedStep, in_blocks

LAYERS, EXPERTS, STEPS = 2, 4, 3


def batches(count, seed=0, tokens=3):
    rng = np.random.default_rng(seed)
    return [
        [
            RecordedStep(
                ReplayStep(tokens, rng.integers(0, 3, (LAYERS, EXPERTS))),
                rng.random((LAYERS, EXPERTS), np.float32),
                rng.random((LAYERS, EXPERTS), np.float32),
            )
            for _ in range(STEPS)
        ]
        for _ in range(count)
    ]


def test_a_union_of_one_batch_keeps_its_bits():
    use = np.float32([[0.0, 0.1, 0.7, 1.0]])
    assert combine_batches([use]) is use


def test_a_union_is_at_least_its_likeliest_and_at_most_that_of_independent_batches():
    uses = [np.float32([[0.0, 0.1, 0.7, 1.0]]), np.float32([[0.0, 0.1, 0.0, 0.5]])]
    union, independent = combine_batches(uses), combine_sequences(np.stack(uses))
    assert (union >= uses[0]).all()
    assert (union <= independent + 1e-6).all()
    np.testing.assert_array_equal(union[0, [0, 3]], [0, 1])


def test_super_steps_hold_the_steps_of_all_members_in_order():
    recorded = batches(5)
    steps = in_blocks(recorded, 2)  # blocks of 2, 2 and 1
    assert len(steps) == 3 * STEPS
    assert [len(step.batches) for step in steps] == [2] * 6 + [1] * 3
    for number, step in enumerate(steps):
        block, place = divmod(number, STEPS)
        members = [batch[place] for batch in recorded[2 * block : 2 * block + 2]]
        np.testing.assert_array_equal(step.rows, sum(member.step.rows for member in members))
        np.testing.assert_array_equal(step.horizon[0], combine_batches([member.now for member in members]))


def test_the_next_block_is_foreseen_from_the_first_step_on():
    recorded = batches(4)
    steps = in_blocks(recorded, 2)
    queued = combine_batches([batch[0].now for batch in recorded[2:]])
    for number, step in enumerate(steps[:STEPS]):
        ends = number == STEPS - 1
        np.testing.assert_allclose(step.horizon[-1], queued if ends else 0.2 * queued, rtol=1e-6)
        assert len(step.horizon) == (2 if ends else 3)
    assert len(steps[-1].horizon) == 1


@pytest.mark.parametrize(("tokens", "certain"), [(64, True), (63, False)])
def test_where_nearly_all_are_wanted_no_predictor_runs(tokens, certain):
    assert wants_nearly_all(2 * tokens, 1, EXPERTS) == certain
    steps = in_blocks(batches(2, tokens=tokens), 2, top_k=1)
    assert all(step.predicted != certain for step in steps)
    assert bool((steps[0].horizon[0] == 1).all()) == certain
