"""Least frequently used: what MoE-Infinity's released engine evicts by, whatever its paper says.

Source: EfficientMoE/MoE-Infinity at d617801. Its C++ dispatcher evicts the resident expert with the smallest count of
visits since it came in, and for Mixtral, DeepSeek, Switch and NLLB the calls that predict and prefetch are commented
out. (`moe_infinity` is the system of the paper.)
Liberties: of equal counts the least recently used goes first; a visit is a layer-step that asks for the expert.
"""

import numpy as np

from expertflow_jax.offload.policies.base import CachePolicy
from expertflow_jax.offload.slots import SlotPool


class LFU(CachePolicy):
    """One cache shared by all layers; the expert with the fewest uses since it came in goes; no prefetch."""

    name = "lfu"

    def attach(self, slots: SlotPool) -> None:
        super().attach(slots)
        self._visits = np.zeros(len(slots.slot_of), np.int64)  # of what is in a slot or on its way

    def observe(self, layer: int, counts: np.ndarray) -> None:
        keys = layer * self.num_experts + np.flatnonzero(counts)
        self._visits[keys] = np.where(self.slots.slot_of[keys] >= 0, self._visits[keys] + 1, 1)

    def moved(self, key: int, evicted: int) -> None:
        if evicted >= 0:
            self._visits[evicted] = 0

    def victim(self, key: int, urgent: bool) -> int:
        return self.slots.least(self._visits)
