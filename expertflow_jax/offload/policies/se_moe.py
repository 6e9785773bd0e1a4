"""SE-MoE's ring of layer sections (2205.10034, the section on inference): every expert of every layer, in turn.

The device holds K sections, each with room for all experts of one layer, K at least two. The experts of layer n go to
section n mod K, counting on from step to step. While a layer computes, the sections of the K - 1 following ones are
there or under way; once it has been computed its section is released, and the layer K ahead is loaded into it, whole:
routing is not looked at, nothing is chosen, and every step moves every expert that does not stay. ExpertFlow's paper
compares with K = 2. PaddlePaddle released no inference code, so this is the paper's description.
Liberties: experts travel one at a time, not a section in one copy. A layer's experts that have arrived are computed
while the rest of its section is on its way; if it lacks any that it wants, these come after all others, so that it is
not done before its section is whole. A layer that does not run in a step is loaded all the same.
"""

import numpy as np

from expertflow_jax.errors import InputError
from expertflow_jax.offload.policies.base import CachePolicy
from expertflow_jax.offload.slots import KEPT, SlotPool


class SEMoE(CachePolicy):
    """A ring: sections of all experts of a layer, loaded in the order of layers."""

    name = "se_moe"
    prefetches = True

    @staticmethod
    def least_slots(num_layers: int, num_experts: int) -> int:
        return min(2, num_layers) * num_experts

    def attach(self, slots: SlotPool) -> None:
        super().attach(slots)
        if slots.num_slots < self.least_slots(self.num_layers, self.num_experts):
            raise InputError(
                f"policy se_moe needs two sections of {self.num_experts} slots, but there are {slots.num_slots} slots; "
                "raise memory_budget or cache_fraction"
            )
        self._sections = min(slots.num_slots // self.num_experts, self.num_layers)
        # positions of the endless ring; layer = position mod L, section = position mod K
        self._running = -1  # whose layer asked last
        self._loading = 0  # the first whose experts are not all there or under way

    def home(self, layer: int) -> slice:
        first = min(self._loading, self._running)
        position = first + (layer - first) % self.num_layers
        begin = position % self._sections * self.num_experts
        return slice(begin, begin + self.num_experts)

    def observe(self, layer: int, counts: np.ndarray) -> None:
        self._running += (layer - self._running) % self.num_layers
        self._loading = max(self._loading, self._running - self._sections + 1)  # before it, sections are taken again

    def _slots_of(self, layer: int) -> np.ndarray:
        return self.slots.slot_of[layer * self.num_experts : (layer + 1) * self.num_experts]

    def urgency(self, keys: np.ndarray) -> np.ndarray:
        before = []
        for position in range(self._loading, self._running + 1):
            layer = position % self.num_layers
            absent_n = layer * self.num_experts + np.flatnonzero(self._slots_of(layer) < 0)
            before.append(np.setdiff1d(absent_n, keys))
        return np.concatenate([*before, keys])

    def next_prefetch(self) -> int:
        released = self._running + self._sections
        for position in range(self._loading, released + 1):
            layer = position % self.num_layers
            if position == released and self._computes():
                return -1
            absent_E = self._slots_of(layer) < 0
            if absent_E.any():
                return layer * self.num_experts + int(absent_E.argmax())
            self._loading = position + 1
        return -1

    def _computes(self) -> bool:
        """Whether the running layer still needs its section."""
        slots_E = self._slots_of(self._running % self.num_layers)
        return bool((self.slots.order[slots_E[slots_E >= 0]] == KEPT).any()) and self._running >= 0

    def victim(self, key: int, urgent: bool) -> int:
        layer = key // self.num_experts
        home = self.home(layer)
        order_E = np.where(self.slots.key_of[home] // self.num_experts == layer, KEPT, self.slots.order[home])
        place = int(order_E.argmin())
        return home.start + place if order_E[place] != KEPT else -1
