"""Routing statistics against counts made by hand or by plain loops."""

import numpy as np
import pytest

from expertflow_jax.errors import InputError
from expertflow_jax.routing.statistics import (
    distinct_experts,
    distinct_experts_per_step,
    popularity,
    signatures,
    temporal_locality,
    usage_entropy,
)
from expertflow_jax.routing.trace import RoutingTrace


def tiny() -> RoutingTrace:
    """One layer, four experts, top 2: a prompt of two tokens and one decoded; a prompt of one token."""
    experts = np.full((2, 3, 1, 2), -1)
    experts[0, :, 0] = [[0, 1], [0, 2], [2, 0]]
    experts[1, 0, 0] = [3, 0]
    return RoutingTrace(experts, 4, lengths=np.array([3, 1]), prompt_lengths=np.array([2, 1]), groups=("a", "b"))


def test_signatures_by_hand():
    trace = tiny()
    np.testing.assert_array_equal(signatures(trace, kind="counts")[:, 0], [[3, 1, 2, 0], [1, 0, 0, 1]])
    np.testing.assert_array_equal(signatures(trace, kind="used")[:, 0], [[1, 1, 1, 0], [1, 0, 0, 1]])
    np.testing.assert_allclose(signatures(trace)[0, 0], np.array([3, 1, 2, 0]) / 6)
    np.testing.assert_array_equal(signatures(trace, kind="counts", phase="decode")[:, 0], [[1, 0, 1, 0], [0, 0, 0, 0]])
    with pytest.raises(InputError, match="kind"):
        signatures(trace, kind="mean")


def test_popularity_and_entropy_by_hand():
    np.testing.assert_allclose(popularity(tiny())[0], np.array([4, 1, 2, 1]) / 4)
    assert usage_entropy(tiny())[0] == pytest.approx(1.75)  # shares 1/2, 1/8, 1/4, 1/8


def test_locality_by_hand():
    locality = temporal_locality(tiny())
    assert locality.pairs == 1
    assert locality.overlap[0] == 1.0  # the decoded token chose {2, 0}, the token before it {0, 2}
    everything = temporal_locality(tiny(), phase="all")
    assert everything.pairs == 2
    assert everything.overlap[0] == 0.75


def test_signatures_match_a_plain_loop(random_trace):
    trace = random_trace(5, n=6)
    counts = np.zeros((6, 3, 8))
    for n, t, layer, k in np.ndindex(trace.experts.shape):
        if trace.experts[n, t, layer, k] >= 0:
            counts[n, layer, trace.experts[n, t, layer, k]] += 1
    np.testing.assert_array_equal(signatures(trace, kind="counts"), counts)


def test_distinct_experts():
    trace = tiny()
    assert distinct_experts(trace, 2).tolist() == [4.0]
    assert 2.0 < distinct_experts(trace, 1, trials=50)[0] < 3.0
    assert distinct_experts_per_step(trace, 1).tolist() == [2.0]
    with pytest.raises(InputError, match="batch size"):
        distinct_experts(trace, 3)
    with pytest.raises(InputError, match="batch size"):
        distinct_experts_per_step(trace, 2)
