"""Speculative loading (2312.17238, section 3.2) over mixtral-offloading's cache: a guess is staged, not cached.

While a layer computes, the next layer's router is applied to the hidden state at hand, and its likeliest experts travel
into staging buffers. Every layer has an LRU cache of its own, as in `cache_moe`. A guess that the next layer really
chooses replaces the least recently used expert of that layer; any other guess is overwritten by later ones and never
touches a cache. Two guesses per token and four staging buffers for all layers are the paper's.
Nothing is copied on the device: a staging slot whose guess was used and the slot of the replaced expert change roles.
Liberties: with a batch, guesses are ordered by the routing probability that they have over all tokens. Staging buffers
come out of the same slots, and there are fewer where a layer would be left without a slot. What is still in a staging
slot when it is asked for counts as used, also if it is the expert that was replaced. The released code
(dvmazur/mixtral-offloading at ce545188) has the cache without the speculation.
"""

import numpy as np

from expertflow_jax.errors import InputError
from expertflow_jax.offload.foresight import on_grid
from expertflow_jax.offload.policies.base import CachePolicy, split_evenly
from expertflow_jax.offload.slots import EMPTY, KEPT, SlotPool

STAGING = -1  # the role of slots that are no layer's


def likeliest(router_probs: np.ndarray, most: int) -> np.ndarray:
    """The experts among the `most` likeliest of any token [N, E], by their probability over all tokens: int [n]."""
    most = min(most, router_probs.shape[1])
    picks_Nm = np.argpartition(-router_probs, most - 1, axis=1)[:, :most]
    weight_E = np.zeros(router_probs.shape[1])
    np.add.at(weight_E, picks_Nm, np.take_along_axis(router_probs, picks_Nm, 1))
    order_E = np.argsort(-on_grid(weight_E), kind="stable")
    return order_E[weight_E[order_E] > 0]


class Speculative(CachePolicy):
    """A fixed number of slots per layer with LRU, and staging slots for what the next router seems to want."""

    name = "speculative"
    prefetches = True
    forecast = "hidden"

    def __init__(self, guesses: int = 2, staging: int = 4):
        """
        Args:
          guesses: experts of the next layer that are guessed for each token.
          staging: slots that hold guesses.
        """
        if guesses < 1 or staging < 0:
            raise InputError(f"policy speculative(guesses={guesses}, staging={staging}): give at least 1 and 0")
        self._most, self._staging = guesses, staging

    def attach(self, slots: SlotPool) -> None:
        super().attach(slots)
        whole = slots.num_slots == len(slots.slot_of)
        staged = 0 if whole else min(self._staging, max(0, slots.num_slots - self.num_layers))
        cached = slots.num_slots - staged
        self._homes = split_evenly(cached, self.num_layers)
        self._role_of_layer = np.arange(self.num_layers) % cached  # fewer slots than layers: several share one
        self._role_S = np.full(slots.num_slots, STAGING)
        for layer, home in enumerate(self._homes):
            self._role_S[home] = self._role_of_layer[layer]
        self._guesses: list[int] = []
        self._offered = -1

    def initial_keys(self) -> np.ndarray:
        return self.filled(self._homes)

    def begin_step(self, horizon: np.ndarray | None) -> None:
        self._guesses = []

    def observe(self, layer: int, counts: np.ndarray) -> None:
        self._guesses = []  # they were for this layer
        chosen_n = self.slots.slot_of[layer * self.num_experts + np.flatnonzero(counts)]
        chosen_n = chosen_n[chosen_n >= 0]
        role = self._role_of_layer[layer]
        order_S = np.where(self._role_S == role, self.slots.order[:-1], KEPT)
        order_S[(self._role_S == role) & (self.slots.state[:-1] == EMPTY)] = -1
        order_S[chosen_n] = KEPT
        for slot in chosen_n[self._role_S[chosen_n] == STAGING]:
            replaced = order_S.argmin()
            if order_S[replaced] == KEPT:
                return
            self._role_S[[slot, replaced]] = role, STAGING
            order_S[replaced] = KEPT

    def observe_hidden(self, layer: int, router_probs: np.ndarray, top_k: int) -> None:
        self._guesses = (layer * self.num_experts + likeliest(router_probs, self._most)).tolist()

    def next_prefetch(self) -> int:
        self._offered = next((key for key in self._guesses if self.slots.slot_of[key] < 0), -1)
        return self._offered

    def _role_for(self, key: int, urgent: bool) -> int:
        guess = not urgent and key == self._offered
        return STAGING if guess else int(self._role_of_layer[key // self.num_experts])

    def vacant(self, key: int, urgent: bool) -> int:
        if not self.slots.num_empty:
            return -1
        empty_S = (self._role_S == self._role_for(key, urgent)) & (self.slots.state[:-1] == EMPTY)
        return int(empty_S.argmax()) if empty_S.any() else -1

    def victim(self, key: int, urgent: bool) -> int:
        role = self._role_for(key, urgent)
        order_S = np.where(self._role_S == role, self.slots.order[:-1], KEPT)
        if role == STAGING:  # the guesses that are already there stay until their layer has chosen
            order_S[np.isin(self.slots.key_of, self._guesses)] = KEPT
        slot = int(order_S.argmin())
        return slot if order_S[slot] != KEPT else -1
