"""The highest and the lowest of L * E values that change with every layer-step, without working them all out.

A value only grows until its layer asks, and at most by the factor D / (D - 1) per layer-step, D the layer-steps until
it does (for it is a sum of chances over distances). So each layer keeps a bound on the highest value among the experts
that it misses and one on the lowest among those that it holds, and its values are worked out when a bound says that
they may matter: what a layer-step costs does not grow with L, and what is decided is the same.
Axes: L MoE layers, E experts, S slots. A key is layer * E + expert.
"""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float, Int

from expertflow_jax.offload.slots import KEPT, SlotPool

_ROUNDING = 1e-5  # by how much, relatively, a value may surpass its bound in float32
_NEVER = -2  # no layer has asked since this was last known


class LazyOrder:
    """Bounds, and the values behind them where they are known.

    Attributes:
      asked: the layer that asked last, -1 at the beginning of a step: values are as seen from there.
      open: bool [L, E], absent when a layer asked last. What is evicted is the least of all, and opens at the next.
      likely: bool [L, E], may be the highest; the owner keeps it up to date before it calls `restart` or `step`.
    """

    def __init__(self, slots: SlotPool, evaluate: Callable[[int | None], np.ndarray]):
        """
        Args:
          evaluate: float32 [E], values of a layer as seen from `asked`, or of all layers [L, E] for None.
        """
        num_layers, self._num_experts = slots.num_layers, slots.num_experts
        shape = (num_layers, self._num_experts)
        self._order = slots.order
        self._slot_of = slots.slot_of.reshape(shape)
        self._evaluate = evaluate
        self.asked = -1
        self.open = self._slot_of < 0
        self.likely = np.ones(shape, bool)
        self._absent = np.where(self.open, np.float32(np.inf), np.float32(0))  # [L, E], infinite without a slot
        self._value = np.zeros(shape, np.float32)  # of each layer as seen from layer-step `_seen`, no more than now
        self._seen = [_NEVER] * num_layers
        self._moved: list[int] = []  # came or went since a layer asked last
        self._highest = np.full(num_layers, np.inf, np.float32)  # at least the highest value of a layer's open experts
        self._wanted, self._wanted_seen = [0] * num_layers, [_NEVER] * num_layers  # which has it, as seen from here
        self._lowest = np.full(num_layers, -1.0, np.float32)  # at most the lowest value of a layer's experts in slots
        self._least, self._least_seen = [0] * num_layers, [_NEVER] * num_layers
        until = (np.arange(num_layers) - np.arange(num_layers)[:, None] - 1) % num_layers + 1
        self._growth = ((1 + 1 / until) * (1 + _ROUNDING)).astype(np.float32)  # [layer that asks, layer]
        self._stale = True  # no bound holds

    def restart(self, asked: int) -> None:
        """Values have changed otherwise than by a layer-step; they are seen from layer `asked` now."""
        self._reopen()
        self.asked, self._stale = asked, True

    def step(self, layer: int) -> None:
        """The layer asks: its own values fall, all others grow."""
        self._reopen()
        if layer != self.asked + 1:
            self._stale = True
        self._highest *= self._growth[layer]
        self._highest[layer], self._lowest[layer] = np.inf, -1.0
        self.asked = layer

    def moved(self, key: int, evicted: int) -> None:
        """The expert `key` has come into a slot, in the place of `evicted` (-1: of none)."""
        layer, expert = divmod(key, self._num_experts)
        self._moved.append(key)
        self._absent[layer, expert] = 0
        value = self._value[layer, expert]
        if value <= self._lowest[layer]:
            self._lowest[layer] = value
            self._least_seen[layer] = _NEVER
        if evicted >= 0:
            self._moved.append(evicted)
            layer, expert = divmod(evicted, self._num_experts)
            self._absent[layer, expert] = np.inf
            if self._least[layer] == expert:
                self._least_seen[layer] = _NEVER

    def values(self, layer: int) -> Float[np.ndarray, "E"]:
        """Values of a layer's experts."""
        if self._stale:
            self._look_at_all()
        if self._seen[layer] != self.asked:
            self._value[layer] = self._evaluate(layer)
            self._seen[layer] = self.asked
        return self._value[layer]

    def highest(self) -> int:
        """The open and likely expert of the highest value, absent now; -1 if there is none, or none above zero."""
        if self._stale:
            self._look_at_all()
        highest, asked = self._highest, self.asked
        while True:
            layer = int(highest.argmax())
            if highest[layer] <= 0:
                return -1
            if self._wanted_seen[layer] == asked:
                expert = self._wanted[layer]
                if self._slot_of[layer, expert] < 0:
                    return layer * self._num_experts + expert
                self.open[layer, expert] = False
            candidates = self.open[layer] & self.likely[layer]
            if not candidates.any():
                highest[layer] = -1.0
                continue
            open_values = np.where(candidates, self.values(layer), -1.0)
            expert = int(open_values.argmax())
            highest[layer] = open_values[expert]
            self._wanted[layer], self._wanted_seen[layer] = expert, asked

    def lowest_free(self, worth: float = np.inf, gain: float = 1.0) -> tuple[np.float32, Int[np.ndarray, "n"]]:
        """The lowest value of an expert whose slot may be overwritten, and the slots of all that have it, by layer.

        Infinite, and no slot, if there is none, or none whose value times `gain` is below `worth`.
        """
        if self._stale:
            self._look_at_all()
        bounds, lowest, order, asked = self._lowest.copy(), np.float32(np.inf), self._order, self.asked
        layers: list[int] = []
        while True:
            layer = int(bounds.argmin())
            bound = bounds[layer]
            if bound > lowest or bound == np.inf or bound * gain >= worth:
                break
            bounds[layer] = np.inf
            known = self._least_seen[layer] == asked and order[self._slot_of[layer, self._least[layer]]] != KEPT
            value = self._lowest[layer] if known else self._lowest_free_of(layer)
            if value < lowest:
                lowest, layers = value, [layer]
            elif value == lowest < np.inf:
                layers.append(layer)
        if not layers or lowest * gain >= worth:
            return np.float32(np.inf), np.zeros(0, np.int32)
        tied = [self._slot_of[layer][self._value[layer] == lowest] for layer in layers]
        return lowest, tied[0] if len(tied) == 1 else np.concatenate(tied)

    def _lowest_free_of(self, layer: int) -> np.float32:
        order, slots_E = self._order, self._slot_of[layer]
        if self._least_seen[layer] != self.asked:
            held_E = self.values(layer) + self._absent[layer]
            least = int(held_E.argmin())
            self._lowest[layer] = held_E[least]
            self._least[layer], self._least_seen[layer] = least, self.asked
        if order[slots_E[self._least[layer]]] != KEPT:
            return self._lowest[layer]
        return np.where(order[slots_E] != KEPT, self.values(layer), np.float32(np.inf)).min()

    def _reopen(self) -> None:
        for key in self._moved:
            layer, expert = divmod(key, self._num_experts)
            self.open[layer, expert] = absent = self._slot_of[layer, expert] < 0
            if absent:
                self._highest[layer] = max(self._highest[layer], self._value[layer, expert])
        self._moved.clear()

    def _look_at_all(self) -> None:
        """All values anew, and bounds that are met."""
        layers, every = len(self._highest), np.arange(len(self._highest))
        self._value[:] = self._evaluate(None)
        self._seen = [self.asked] * layers
        open_LE = np.where(self.open & self.likely, self._value, -1.0)
        experts_L = open_LE.argmax(1)
        self._highest = open_LE[every, experts_L]
        self._wanted, self._wanted_seen = experts_L.tolist(), [self.asked] * layers
        held_LE = self._value + self._absent
        experts_L = held_LE.argmin(1)
        self._lowest = held_LE[every, experts_L]
        self._least, self._least_seen = experts_L.tolist(), [self.asked] * layers
        self._stale = False
