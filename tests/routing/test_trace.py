"""Routing traces: round trips, joining, and refusal of what is not one."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from expertflow_jax.errors import InputError
from expertflow_jax.routing.trace import RoutingTrace


def assert_equal(a: RoutingTrace, b: RoutingTrace) -> None:
    for name in ("experts", "lengths", "prompt_lengths", "weights", "speculative"):
        x, y = getattr(a, name), getattr(b, name)
        assert (x is None) == (y is None), name
        if x is not None:
            np.testing.assert_array_equal(x, y, err_msg=name)
            assert x.dtype == y.dtype
    assert (a.num_experts, a.ids, a.groups) == (b.num_experts, b.ids, b.groups)
    assert a.model_fingerprint == b.model_fingerprint


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), experts=st.sampled_from([4, 64, 128, 200, 300]), optional=st.booleans())
def test_round_trip(tmp_path_factory, random_trace, seed, experts, optional):
    trace = random_trace(seed, experts=experts)
    if optional:
        rng = np.random.default_rng(seed)
        weights = rng.random(trace.experts.shape).astype(np.float32)
        speculative = rng.integers(-1, experts, (*trace.experts.shape[:3], 4)).astype(np.int32)
        trace = random_trace(seed, experts=experts, weights=weights, speculative=speculative)
    path = tmp_path_factory.mktemp("trace") / "trace.npz"
    trace.save(path)
    assert_equal(RoutingTrace.load(path), trace)
    assert [p.name for p in path.parent.iterdir()] == ["trace.npz"]


def test_lengths_default_to_the_last_routed_token():
    experts = np.full((2, 4, 1, 1), -1)
    experts[0, :3] = 0
    trace = RoutingTrace(experts, num_experts=2)
    assert trace.lengths.tolist() == [3, 0]
    assert trace.prompt_lengths.tolist() == [3, 0]
    assert trace.num_tokens == 3


def test_phases_partition_the_tokens(random_trace):
    trace = random_trace(3, n=20)
    prompt, decode = trace.token_mask("prompt"), trace.token_mask("decode")
    assert not (prompt & decode).any()
    np.testing.assert_array_equal(prompt | decode, trace.token_mask())
    assert prompt.sum(1).tolist() == trace.prompt_lengths.tolist()
    with pytest.raises(InputError, match="phase"):
        trace.token_mask("prefill")


def test_concatenate_pads_and_select_inverts(random_trace):
    a, b = random_trace(0, t=4), random_trace(1, t=9)
    both = RoutingTrace.concatenate([a, b])
    assert both.experts.shape[:2] == (10, 9)
    part = both.select(slice(0, 5))
    np.testing.assert_array_equal(part.experts[:, :4], a.experts)
    assert (part.experts[:, 4:] == -1).all()
    assert part.ids == a.ids
    assert both.select(np.arange(10) >= 5).ids == b.ids


def test_concatenate_refuses_other_models(random_trace):
    with pytest.raises(InputError, match="num_experts"):
        RoutingTrace.concatenate([random_trace(0), random_trace(0, experts=16)])
    with pytest.raises(InputError, match="nothing"):
        RoutingTrace.concatenate([])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_experts": 4}, "0 to 3"),
        ({"lengths": np.array([9, 1, 1, 1, 1])}, "lengths"),
        ({"prompt_lengths": np.full(5, 8)}, "longer than its sequence"),
        ({"lengths": np.zeros(5, int), "prompt_lengths": np.zeros(5, int)}, "beyond its sequence"),
        ({"weights": np.zeros((5, 7, 3, 1))}, "weights"),
        ({"speculative": np.zeros((5, 7, 2, 4), int)}, "speculative"),
        ({"ids": ("a", "b")}, "ids"),
        ({"experts": np.zeros((5, 7, 3))}, "integers"),
    ],
)
def test_impossible_traces_are_refused(change, message, random_trace):
    trace = random_trace(0)
    values = {
        "experts": trace.experts,
        "num_experts": 8,
        "lengths": trace.lengths,
        "prompt_lengths": trace.prompt_lengths,
    }
    with pytest.raises(InputError, match=message):
        RoutingTrace(**(values | change))


def test_bad_files_are_refused(tmp_path, random_trace):
    path = tmp_path / "trace.npz"
    with pytest.raises(InputError, match="cannot be read"):
        RoutingTrace.load(path)
    random_trace(0).save(path)
    whole = path.read_bytes()
    for cut in (0, 1, 20, len(whole) // 2, len(whole) - 4):
        path.write_bytes(whole[:cut])
        with pytest.raises(InputError, match=r"trace\.npz"):
            RoutingTrace.load(path)
    damaged = bytearray(whole)
    middle = len(whole) // 3
    damaged[middle : middle + 40] = bytes(40)
    path.write_bytes(bytes(damaged))
    with pytest.raises(InputError, match=r"trace\.npz"):
        RoutingTrace.load(path)
    np.savez(path, other=np.zeros(3))
    with pytest.raises(InputError, match="missing"):
        RoutingTrace.load(path)
    np.savez(path, format=np.array("else"), **{k: np.zeros(1) for k in ("experts", "num_experts")})
    with pytest.raises(InputError, match="missing"):
        RoutingTrace.load(path)
    arrays = random_trace(0).to_arrays() | {"format": np.array("other/1")}
    np.savez(path, **arrays)
    with pytest.raises(InputError, match="format"):
        RoutingTrace.load(path)


def test_pickled_objects_are_never_loaded(tmp_path, random_trace):
    path = tmp_path / "trace.npz"
    arrays = random_trace(0).to_arrays() | {"ids": np.array([{"a": 1}] * 5, dtype=object)}
    np.savez(path, **arrays)
    with pytest.raises(InputError, match="plain arrays"):
        RoutingTrace.load(path)
