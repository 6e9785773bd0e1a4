"""ClassLRU: the expert cache in llama.cpp's tree since autumn 2026 (#29887, src/llama-moe-cache.cpp; #31233).

An expert's uses, halved every 128 tokens and remembered after it has left, give its class, floor(log2 uses), from 0 to
7. Every class is an LRU list; of the heads of the lists, the one with the largest age / 2 ** class makes room. One pool
serves all layers whose experts have the same shape, and nothing is predicted.
Liberties: a step is one token of every sequence, so it counts as one token and an expert as used once in it; age is in
layer-steps. llama.cpp computes batches of more than 32 tokens, prompts that is, from buffers beside the cache and lets
them evict nothing; here there is no memory beside the slots, and a prompt's experts come and go like all others.
"""

import numpy as np

from expertflow_jax.errors import InputError
from expertflow_jax.offload.policies.base import CachePolicy
from expertflow_jax.offload.slots import SlotPool


class ClassLRU(CachePolicy):
    """One cache shared by all layers; age weighed by how often an expert has been used; no prefetch."""

    name = "class_lru"

    def __init__(self, half_life: float = 128.0, classes: int = 8):
        """
        Args:
          half_life: steps after which a use counts half.
          classes: how many there are; the last has no upper bound.
        """
        if not half_life > 0 or classes < 1:
            raise InputError(f"policy class_lru(half_life={half_life}, classes={classes}): both must be above zero")
        self._fading = 0.5 ** (1 / half_life)
        self._highest = classes - 1

    def attach(self, slots: SlotPool) -> None:
        super().attach(slots)
        self._uses = np.zeros((self.num_layers, self.num_experts))
        self._now = 0

    def observe(self, layer: int, counts: np.ndarray) -> None:
        uses_E = self._uses[layer]
        uses_E *= self._fading
        uses_E += counts > 0
        self._now += 1

    def victim(self, key: int, urgent: bool) -> int:
        slots = self.slots
        held_S = slots.key_of
        uses_S = np.maximum(self._uses.reshape(-1)[held_S], 1)
        class_S = np.minimum(np.floor(np.log2(uses_S)), self._highest)
        age_S = self._now - slots.last_used[:-1]
        staleness = np.zeros(len(slots.slot_of))
        staleness[held_S] = age_S / 2**class_S
        return slots.least(-staleness)
