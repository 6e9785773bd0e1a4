"""Every scheduler runs every sequence once, in full batches, and lets none starve; groups are found."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from expertflow_jax.errors import InputError
from expertflow_jax.scheduling import SCHEDULERS, make_scheduler, schedule_cost

windows = st.builds(
    lambda seed, w, layers, experts: (
        np.random.default_rng(seed).random((w, layers, experts)).astype(np.float32) ** 4,
        np.random.default_rng(seed + 1).permutation(w),
    ),
    st.integers(0, 2**20),
    st.integers(0, 40),
    st.integers(1, 3),
    st.integers(2, 9),
)


@pytest.mark.parametrize("name", SCHEDULERS)
@given(window=windows, batch_size=st.integers(1, 9), max_wait=st.none() | st.integers(0, 5))
@settings(max_examples=40, deadline=None)
def test_no_sequence_is_lost_doubled_or_starved(name, window, batch_size, max_wait):
    signatures, arrival = window
    plan = make_scheduler(name, batch_size=batch_size, max_wait=max_wait).plan(signatures, arrival.tolist())
    count = len(signatures)
    assert sorted(np.concatenate([*plan, np.zeros(0, int)]).tolist()) == list(range(count))
    assert len(plan) == -(-count // batch_size)
    sizes = [len(batch) for batch in plan]
    assert all(0 < size <= batch_size for size in sizes)
    if sizes:
        assert max(sizes) - min(sizes) <= 1
    if max_wait is not None:
        fifo = make_scheduler("fifo", batch_size=batch_size).plan(signatures, arrival.tolist())
        turn = {int(i): j for j, batch in enumerate(fifo) for i in batch}
        for j, batch in enumerate(plan):
            assert all(j - turn[int(i)] <= max_wait for i in batch)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_plan_is_a_function_of_its_arguments(name):
    signatures = np.random.default_rng(0).random((30, 2, 8)).astype(np.float32)
    first, again = (make_scheduler(name, batch_size=4, seed=3).plan(signatures) for _ in range(2))
    assert all((a == b).all() for a, b in zip(first, again, strict=True))


@pytest.mark.parametrize("name", ["kmeans", "greedy", "local_search"])
def test_planted_groups_are_found(name):
    groups = np.repeat(np.eye(4, dtype=np.float32)[:, None, :].repeat(2, axis=1), 8, axis=0)  # 4 groups of 8
    shuffled = np.random.default_rng(1).permutation(32)
    plan = make_scheduler(name, batch_size=8).plan(groups[shuffled])
    assert all(len({int(shuffled[i]) // 8 for i in batch}) == 1 for batch in plan)


def test_grouping_never_expects_more_experts_than_random_on_sparse_routes():
    rng = np.random.default_rng(2)
    signatures = (rng.random((64, 4, 32)) < 0.15).astype(np.float32)

    def cost(name):
        plan = make_scheduler(name, batch_size=8).plan(signatures)
        return schedule_cost(signatures, plan)

    assert cost("local_search") <= cost("greedy") < cost("random")


def test_fifo_keeps_the_order_of_arrival():
    plan = make_scheduler("fifo", batch_size=2).plan(np.zeros((4, 1, 2), np.float32), [3.0, 1.0, 2.0, 0.0])
    assert np.concatenate(plan).tolist() == [3, 1, 2, 0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "gredy", "batch_size": 4}, "did you mean 'greedy'"),
        ({"name": "fifo", "batch_size": 0}, "batch_size"),
        ({"name": "fifo", "batch_size": 4, "max_wait": -1}, "max_wait"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(InputError, match=message):
        make_scheduler(**arguments)


@pytest.mark.parametrize("signatures", [np.zeros((3, 2)), np.full((3, 2, 4), 1.5), np.full((3, 2, 4), np.nan)])
def test_bad_signatures(signatures):
    with pytest.raises(InputError, match="signatures"):
        make_scheduler("greedy", batch_size=2).plan(signatures.astype(np.float32))
