"""Choosing the next token on the host, reproducibly from a seed. Axes: B sequences, V vocabulary."""

import dataclasses
from collections.abc import Iterable

import numpy as np
from jaxtyping import Float, Int

from expertflow_jax.errors import InputError
from expertflow_jax.inference.arguments import real_number, whole_number

# Below it the likeliest token is certain, but for exact ties; above it logits / temperature stay finite in float64.
COLDEST = float(np.finfo(np.float32).tiny)


@dataclasses.dataclass(frozen=True)
class Sampler:
    """Greedy at temperature 0; else temperature, then top-k, then nucleus (top-p), as transformers orders them.

    Attributes:
      temperature: 0 or more; so small a one that logits / temperature may overflow is 0.
      top_k: sampling from the k likeliest and those as likely as the last of them; 0: from all.
      top_p: sampling from the smallest set of at least this probability, in (0, 1].
      seed: 0 or more, of any size.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        """Raises InputError for a number that cannot be meant."""
        temperature = real_number("temperature", self.temperature, "0 (greedy) or more")
        top_p = real_number("top_p", self.top_p, "in (0, 1]")
        if temperature < 0:
            raise InputError(f"temperature: {temperature:g} should be 0 (greedy) or more")
        if not 0 < top_p <= 1:
            raise InputError(f"top_p: {top_p:g} should be in (0, 1]")
        whole_number("top_k", self.top_k)
        whole_number("seed", self.seed)

    def choose(
        self, logits: Float[np.ndarray, "B V"], step: int, sequences: Iterable[int] | None = None
    ) -> Int[np.ndarray, "B"]:
        """Next token ids int32 from float32 logits.

        A sample depends on the seed, the sequence's number and the step, and on nothing else: neither on what runs
        beside the sequence nor on the place in its batch.

        Args:
          step: tokens that each sequence has answered so far.
          sequences: number of each row, by default its place.
        """
        if self.temperature < COLDEST:
            return logits.argmax(axis=-1).astype(np.int32)
        numbers = range(len(logits)) if sequences is None else sequences
        chances = [np.random.default_rng(self._seed_of(number, step)).random() for number in numbers]
        scaled_BxV = logits.astype(np.float64) / self.temperature
        if 0 < self.top_k < scaled_BxV.shape[-1]:
            kth_Bx1 = np.partition(scaled_BxV, -self.top_k, axis=-1)[:, -self.top_k, None]
            scaled_BxV = np.where(scaled_BxV < kth_Bx1, -np.inf, scaled_BxV)
        order_BxV = np.argsort(-scaled_BxV, axis=-1, kind="stable")
        ordered_BxV = np.take_along_axis(scaled_BxV, order_BxV, axis=-1)
        probs_BxV = np.exp(ordered_BxV - ordered_BxV[:, :1])
        probs_BxV /= probs_BxV.sum(axis=-1, keepdims=True)
        before_BxV = np.cumsum(probs_BxV, axis=-1) - probs_BxV
        probs_BxV = np.where(before_BxV < self.top_p, probs_BxV, 0.0)
        threshold_Bx1 = np.array(chances)[:, None] * probs_BxV.sum(axis=-1, keepdims=True)
        place_Bx1 = (np.cumsum(probs_BxV, axis=-1) <= threshold_Bx1).sum(axis=-1, keepdims=True)
        place_Bx1 = np.minimum(place_Bx1, (probs_BxV > 0).sum(axis=-1, keepdims=True) - 1)
        return np.take_along_axis(order_BxV, place_Bx1, axis=-1)[:, 0].astype(np.int32)

    def _seed_of(self, number: int, step: int) -> np.random.SeedSequence:
        return np.random.SeedSequence(int(self.seed), spawn_key=(int(number), step))
