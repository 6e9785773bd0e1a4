"""Choosing the next token on the host, reproducibly from a seed. Axes: B sequences, V vocabulary."""

import dataclasses

import numpy as np

from expertflow_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class Sampler:
    """Greedy at temperature 0; else temperature, then top-k, then nucleus (top-p), as transformers orders them."""

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        """Raises InputError for a number that cannot be meant."""
        for name, good, wanted in (
            ("temperature", self.temperature >= 0, "0 (greedy) or more"),
            ("top_k", self.top_k >= 0, "0 (all) or more"),
            ("top_p", 0 < self.top_p <= 1, "in (0, 1]"),
        ):
            if not good:
                raise InputError(f"{name}: {getattr(self, name)} should be {wanted}")

    def choose(self, logits: np.ndarray, step: int) -> np.ndarray:
        """Next token ids int32 [B] from float32 logits [B, V]; `step` makes each step's randomness its own."""
        if self.temperature == 0.0:
            return logits.argmax(axis=-1).astype(np.int32)
        random = np.random.default_rng((self.seed, step))
        scaled = logits.astype(np.float64) / self.temperature
        if 0 < self.top_k < scaled.shape[-1]:
            kth = np.partition(scaled, -self.top_k, axis=-1)[:, -self.top_k, None]
            scaled = np.where(scaled < kth, -np.inf, scaled)
        order = np.argsort(-scaled, axis=-1, kind="stable")
        ordered = np.take_along_axis(scaled, order, axis=-1)
        probs = np.exp(ordered - ordered[:, :1])
        probs /= probs.sum(axis=-1, keepdims=True)
        before = np.cumsum(probs, axis=-1) - probs
        probs = np.where(before < self.top_p, probs, 0.0)
        threshold = random.random((len(logits), 1)) * probs.sum(axis=-1, keepdims=True)
        place = (np.cumsum(probs, axis=-1) <= threshold).sum(axis=-1, keepdims=True)
        place = np.minimum(place, (probs > 0).sum(axis=-1, keepdims=True) - 1)
        return np.take_along_axis(order, place, axis=-1)[:, 0].astype(np.int32)
