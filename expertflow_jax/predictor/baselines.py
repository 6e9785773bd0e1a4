"""Two forecasts that need no training, for comparison: expert popularity, and the next layer's router.

Popularity is each expert's frequency on training traces. Speculation applies layer l's router to the
hidden state of the layer before (2312.17238, speculative loading); the trace holds the ranked experts. To
compare it with the predictor over batches its ranks become probabilities: how often, on training traces,
the expert at rank r of layer l was really chosen. Both baselines are thus as well calibrated as they can
be. Note what speculation may see that the predictor may not: the hidden state of layer l - 1, one layer
before it is needed and no earlier.
Axes: n tokens, L MoE layers, E experts, K top-k, M ranks.
"""

import dataclasses

import numpy as np

from expertflow_jax.errors import InputError
from expertflow_jax.routing.statistics import popularity
from expertflow_jax.routing.trace import RoutingTrace


def flat_tokens(trace: RoutingTrace, phase: str = "all") -> tuple[np.ndarray, np.ndarray | None]:
    """experts int32 [n, L, K] and speculative int32 [n, L, M] (or None) of a phase's tokens, in order."""
    mask = trace.token_mask(phase)
    return trace.experts[mask], None if trace.speculative is None else trace.speculative[mask]


@dataclasses.dataclass(frozen=True)
class Popularity:
    """Forecasts every token by the experts' overall frequency.

    Attributes:
      probs: float64 [L, E], fraction of training tokens that chose the expert.
    """

    probs: np.ndarray

    @classmethod
    def fit(cls, trace: RoutingTrace) -> "Popularity":
        return cls(popularity(trace))

    def scores(self, experts: np.ndarray) -> np.ndarray:
        """float32 [n, L, E] for n tokens (the same for each)."""
        return np.broadcast_to(self.probs.astype(np.float32), (len(experts), *self.probs.shape))


@dataclasses.dataclass(frozen=True)
class Speculation:
    """Forecasts layer l by router l on the hidden state of the layer before; the first layer by popularity.

    Attributes:
      rank_probs: float64 [L, M], P(expert at rank r is chosen) on training traces.
      rest: float64 [L, E], popularity scaled to what the ranked experts leave over.
      popularity: float64 [L, E], used where nothing is ranked.
    """

    rank_probs: np.ndarray
    rest: np.ndarray
    popularity: np.ndarray

    @classmethod
    def fit(cls, trace: RoutingTrace) -> "Speculation":
        """Raises InputError if the trace holds no speculative ranks."""
        experts, ranked = flat_tokens(trace)
        if ranked is None:
            raise InputError("trace: no speculative experts recorded; record the traces with speculation")
        known = ranked >= 0
        hit = (ranked[..., :, None] == experts[..., None, :]).any(-1) & known
        rank_probs = hit.sum(0) / np.maximum(known.sum(0), 1)
        common = popularity(trace)
        chosen = common.sum(-1, keepdims=True)
        left = np.maximum(chosen - rank_probs.sum(-1, keepdims=True), 0) / np.maximum(chosen, 1e-12)
        # Below every ranked expert, or the fallback would overtake the forecast it completes.
        ceiling = np.where(rank_probs.max(-1, keepdims=True) > 0, 0.99 * rank_probs.min(-1, keepdims=True), 1.0)
        scaled = common * left
        scaled *= np.minimum(1.0, ceiling / np.maximum(scaled.max(-1, keepdims=True), 1e-12))
        return cls(rank_probs, scaled, common)

    def scores(self, ranked: np.ndarray) -> np.ndarray:
        """ranked int [n, L, M] -> float32 [n, L, E]."""
        n, layers, _ = ranked.shape
        # One more column collects the ranks that hold no expert.
        known = (ranked >= 0).any(-1)
        base = np.where(known[..., None], self.rest, self.popularity).astype(np.float32)
        out = np.concatenate([base, np.zeros((n, layers, 1), np.float32)], axis=-1)
        probs = np.broadcast_to(self.rank_probs.astype(np.float32), ranked.shape)
        np.put_along_axis(out, np.where(ranked >= 0, ranked, out.shape[-1] - 1), probs, axis=-1)
        return out[..., :-1]
