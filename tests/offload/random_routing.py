"""Routing as any router might give it, for properties of miss policies. Axes: N tokens, E experts, K top-k."""

import numpy as np
from hypothesis import strategies as st


@st.composite
def routings(draw, least_experts=1, most_experts=8):
    """ids int32 [N, K] (-1 on padding), weights and router probabilities float32 [N, K] and [N, E], usable bool [E]."""
    experts = draw(st.integers(least_experts, most_experts))
    top_k = draw(st.integers(1, min(4, experts)))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    tokens = draw(st.integers(1, 12))
    probs_NE = random.dirichlet(np.full(experts, 0.5), tokens).astype(np.float32)
    ids_NK = np.argsort(-probs_NE, axis=1)[:, :top_k].astype(np.int32)
    weights_NK = np.take_along_axis(probs_NE, ids_NK, axis=1)
    if draw(st.booleans()):
        weights_NK /= weights_NK.sum(axis=1, keepdims=True)
    padding = random.random(tokens) < 0.2
    ids_NK[padding], weights_NK[padding] = -1, 0
    return ids_NK, weights_NK, probs_NE, random.random(experts) < draw(st.sampled_from([0.0, 0.5, 0.9, 1.0]))
