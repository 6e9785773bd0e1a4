"""A maker of random traces for the routing tests."""

import numpy as np
import pytest

from expertflow_jax.routing.trace import RoutingTrace


def make_random_trace(seed: int, n: int = 5, t: int = 7, layers: int = 3, experts: int = 8, k: int = 2, **extra):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, t + 1, n)
    chosen = np.argsort(rng.random((n, t, layers, experts)), axis=-1)[..., :k].astype(np.int32)
    chosen[np.arange(t) >= lengths[:, None]] = -1
    return RoutingTrace(
        experts=chosen,
        num_experts=experts,
        lengths=lengths,
        prompt_lengths=rng.integers(0, lengths + 1),
        ids=tuple(f"q{seed}/{i}" for i in range(n)),
        groups=tuple("ab"[i % 2] for i in range(n)),
        model_fingerprint="f00d",
        **extra,
    )


@pytest.fixture(scope="session")
def random_trace():
    """Function (seed, n, t, layers, experts, k, **extra) -> RoutingTrace with everything filled in."""
    return make_random_trace
