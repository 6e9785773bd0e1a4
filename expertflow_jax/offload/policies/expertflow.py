"""ExpertFlow's predictive expert cache (2410.17954, section on the cache): the forecast decides what comes and goes.

The paper prefetches along the predicted path and evicts what is not foreseen; how to weigh an uncertain forecast it
leaves open. Here every expert has one *value*, the hits per layer-step that a slot may expect from holding it
(`value.py`). The absent expert of the highest value travels, if its use is likely and it beats the lowest value in the
slots. `lazy_order.py` finds both without working out all values; `tuning.py` has every number.

Where compute waits for all but the share `starved` of the time, every transfer counts, so
- a prefetch has to be worth its victim: P(use) x what it hides of the transfer > P(victim used within the horizon), for
  the victim would have to travel again. An urgent transfer will find a better one: what its layer leaves behind;
- an urgent transfer waits until the running layer's hits have been computed if the best victim is among them.
Axes: H steps of the horizon, L MoE layers, E experts. A key is layer * E + expert.
"""

import inspect
from typing import Any

import numpy as np

from expertflow_jax.offload.policies.base import CachePolicy
from expertflow_jax.offload.policies.lazy_order import LazyOrder
from expertflow_jax.offload.policies.tuning import Tuning
from expertflow_jax.offload.policies.value import first_uses, inverse_distances, lost, saved, values
from expertflow_jax.offload.slots import KEPT, READY, SlotPool


class ExpertFlow(CachePolicy):
    """Shared slots, prefetch by value, eviction of the lowest; without a horizon, frequencies are the forecast."""

    name = "expertflow"
    prefetches = True
    forecast = "predictor"
    __signature__ = inspect.signature(Tuning)  # its options

    def __init__(self, **options: Any):
        self.tuning = Tuning(**options)

    def attach(self, slots: SlotPool) -> None:
        super().attach(slots)
        self._frequency = np.full((self.num_layers, self.num_experts), self.tuning.first_guess, np.float32)
        self._layers = np.arange(self.num_layers)[:, None]
        self.order = LazyOrder(slots, self._evaluate)
        self.begin_step(None)

    def begin_step(self, horizon: np.ndarray | None) -> None:
        self._asked: list[int] = []
        self._least_chance = self.tuning.least_chance(self.working)
        self._foresee(self._frequency[None] if horizon is None else horizon.astype(np.float32), -1)

    def update_horizon(self, horizon: np.ndarray) -> None:
        self._foresee(horizon.astype(np.float32), self.order.asked)

    def _foresee(self, uses: np.ndarray, asked: int) -> None:
        """P(used) [H, L, E] from now on, as seen from the layer that asked last."""
        self.first, self._never = first_uses(uses)
        # from the next step on, for layers that have asked
        self._first_later = np.zeros_like(self.first)
        self._first_later[1:], self._never_later = first_uses(uses[1:])
        self.order.likely = self.first.max(0) >= self._least_chance
        self._likely_later = self._first_later.max(0) >= self._least_chance
        # Rows of the arrays above: taking them out at every evaluation would cost as much as a part of the sum.
        self._rows = list(zip(zip(*self.first, strict=True), self._never, self._frequency, strict=True))
        self._inverse = inverse_distances(len(uses), self.num_layers)
        for layer in self._asked:
            self._pass(layer)
        self.order.restart(asked)

    def _pass(self, layer: int) -> None:
        """The layer has asked in this step: it is used again in the next one at the earliest."""
        self.first[:, layer] = self._first_later[:, layer]
        self._never[layer] = self._never_later[layer]
        self.order.likely[layer] = self._likely_later[layer]

    def _evaluate(self, layer: int | None) -> np.ndarray:
        """Values [E] of a layer's experts, or of all [L, E]."""
        if layer is None:
            ahead_Lx1 = self._layers - self.order.asked
            return values(self.first, self._never, self._frequency, ahead_Lx1, self._inverse, self.num_layers)
        return values(*self._rows[layer], layer - self.order.asked, self._inverse, self.num_layers)

    def observe(self, layer: int, counts: np.ndarray) -> None:
        frequency_E = self._frequency[layer]
        frequency_E += self.tuning.memory * ((counts > 0) - frequency_E)
        self._asked.append(layer)
        self._pass(layer)
        self.order.step(layer)

    def moved(self, key: int, evicted: int) -> None:
        self.order.moved(key, evicted)

    def urgency(self, keys: np.ndarray) -> np.ndarray:
        """The least value first: whoever comes last need not make room for the others."""
        if len(keys) < 2:
            return keys
        layer = int(keys[0]) // self.num_experts
        return keys[self.order.values(layer)[keys - layer * self.num_experts].argsort(kind="stable")]

    def next_prefetch(self) -> int:
        return self.order.highest()

    def victim(self, key: int, urgent: bool) -> int:
        layer, expert = divmod(key, self.num_experts)
        worth = {} if urgent else {"worth": self.order.values(layer)[expert], "gain": self.tuning.gain}
        lowest, slots_n = self.order.lowest_free(**worth)
        if not len(slots_n):
            return -1
        slot = int(slots_n[self.slots.order[slots_n].argmin() if len(slots_n) > 1 else 0])
        if self.working >= self.tuning.starved:
            return slot
        if urgent:
            return -1 if self.slots.reuses_at_once and self._least_running() < lowest else slot
        first, asked = self.first, self.order.asked
        loss = lost(first, *divmod(int(self.slots.key_of[slot]), self.num_experts), asked)
        return slot if saved(first, layer, expert, asked, self.hidden) > loss else -1

    def _least_running(self) -> np.float32:
        """The lowest value of an expert of the running layer that has arrived and is not yet computed; or infinite."""
        asked = self.order.asked
        slots_E = self.slots.slot_of[asked * self.num_experts : (asked + 1) * self.num_experts]
        waiting_E = (self.slots.state[slots_E] == READY) & (self.slots.order[slots_E] == KEPT)
        return self.order.values(asked)[waiting_E].min(initial=np.inf)
