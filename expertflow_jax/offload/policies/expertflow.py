"""ExpertFlow's predictive expert cache (2410.17954, section on the cache): the forecast decides what comes and goes.

The paper prefetches along the predicted path and evicts what is not foreseen; how to weigh an uncertain
forecast it leaves open. Here every expert has one *value*, the hits per layer-step that a slot may expect from
holding it until its next use:

    value = sum over steps h of P(first used in step h) / (layer-steps until then)
            + P(not used within the horizon) / (layer-steps that a running frequency of the expert suggests)

With a certain forecast this order is Belady's. The absent expert of the highest value travels, if its use is likely
and it beats the lowest value in the slots. On made-up traces with forecasts of recall 0.6 to 0.95 this hit density
led over exponential discounting and over expected distance, in hits and in time.

Values change with every layer-step, of all L * E experts, but only upwards until their layer asks, and at most by the
factor D / (D - 1), D the layer-steps until it does. So each layer keeps a bound on the highest value that it misses
and one on the lowest that it holds, and its values are worked out when a bound says that they may matter: what a
layer-step costs does not grow with L, and what is decided is the same (`tests/offload/reference_engine.py`).
Axes: H steps of the horizon, L MoE layers, E experts. A key is layer * E + expert.
"""

import numpy as np

from expertflow_jax.offload.policies.base import CachePolicy
from expertflow_jax.offload.slots import KEPT, READY, SlotPool

MEMORY = 0.1  # weight of the latest step in the running frequency
FIRST_GUESS = 0.1  # frequency of an expert before its layer has been seen
GAIN = 1.1  # a prefetch must be worth this many times its victim
# and be first used in one step at least this likely, by the share of the time in which compute does not wait: a
# transfer in vain delays the next correction, which costs the more the less there is to hide it behind; and it has to
# choose its victim before the running layer's experts are free to go, so that in the end only what is certain travels
# unasked. On the recorded routing of five models, over links from 20 times faster than theirs to twice as slow, no one
# chance from 0 to 1 did as well as these three.
LIKELY = ((0.5, 0.3), (0.15, 0.75), (0.0, 1.0))

# Where compute waits for all but this share of the time, every transfer counts, so
# - a prefetch has to be worth its victim: P(use) x what it hides of the transfer, D layer-steps long, > P(victim used
#   within the horizon), for the victim would have to travel again. An urgent transfer will find a better one: what
#   its layer leaves behind;
# - an urgent transfer waits until the running layer's hits have been computed if the best victim is among them.
STARVED = 0.25

_ROUNDING = 1e-5  # by how much, relatively, a value may surpass its bound in float32
_NEVER = -2  # no layer has asked since this was last known


class ExpertFlow(CachePolicy):
    """Shared slots, prefetch by value, eviction of the lowest; without a horizon, frequencies are the forecast."""

    name = "expertflow"
    prefetches = True
    forecast = "predictor"

    def attach(self, slots: SlotPool) -> None:
        super().attach(slots)
        layers, shape = self.num_layers, (self.num_layers, self.num_experts)
        self._frequency = np.full(shape, FIRST_GUESS, np.float32)
        self._value = np.zeros(shape, np.float32)  # of each layer as seen from layer-step `_seen`, no more than now
        self._product = np.empty_like(self._value)
        self._slot_of = slots.slot_of.reshape(shape)
        # May be prefetched: absent when a layer asked last. What is evicted is the least of all, and opens at the next.
        self._open = self._slot_of < 0
        self._moved: list[int] = []  # came or went since
        self._seen = [_NEVER] * layers
        self._highest = np.full(layers, np.inf, np.float32)  # at least the highest value of a layer's open experts
        self._wanted, self._wanted_seen = [0] * layers, [_NEVER] * layers  # the one that has it, as seen from here
        self._lowest = np.full(layers, -1.0, np.float32)  # at most the lowest value of a layer's experts in slots
        self._least, self._least_seen = [0] * layers, [_NEVER] * layers
        until = (np.arange(layers) - np.arange(layers)[:, None] - 1) % layers + 1
        self._growth = ((1 + 1 / until) * (1 + _ROUNDING)).astype(np.float32)  # [layer that asks, layer]
        self.begin_step(None)

    def begin_step(self, horizon: np.ndarray | None) -> None:
        self._layer = -1  # the last one that has asked
        self._asked: list[int] = []
        self._least_chance = next(chance for working, chance in LIKELY if self.working >= working)
        self._foresee(self._frequency[None] if horizon is None else horizon.astype(np.float32))

    def update_horizon(self, horizon: np.ndarray) -> None:
        self._foresee(horizon.astype(np.float32))

    def _foresee(self, uses: np.ndarray) -> None:
        # P(first used in each step), P(not used at all); also from the next step on, for layers passed by
        self._first, never = _first_uses(uses)
        self._first_later, self._never_later = _first_uses(uses[1:])
        self._later = never * self._frequency
        for layer in self._asked:
            self._pass(layer)
        self._likely = self._first.max(0) >= self._least_chance
        distance = np.arange(len(uses) * self.num_layers + 1, dtype=np.float32)
        self._weight = np.where(distance > 0, 1 / np.maximum(distance, 1), 0)
        self._reopen()
        self._all_changed = True

    def _pass(self, layer: int) -> None:
        """The layer has asked in this step: it is used again in the next one at the earliest."""
        self._first[0, layer] = 0.0
        self._first[1:, layer] = self._first_later[:, layer]
        np.multiply(self._never_later[layer], self._frequency[layer], out=self._later[layer])

    def observe(self, layer: int, counts: np.ndarray) -> None:
        frequency, step = self._frequency[layer], self._product[layer]
        np.negative(frequency, out=step)
        step += counts > 0
        step *= MEMORY
        frequency += step
        self._asked.append(layer)
        self._pass(layer)
        self._likely[layer] = self._first[:, layer].max(0) >= self._least_chance
        self._reopen()
        if layer != self._layer + 1:
            self._all_changed = True
        self._highest *= self._growth[layer]
        self._highest[layer], self._lowest[layer] = np.inf, -1.0
        self._layer = layer

    def moved(self, key: int, evicted: int) -> None:
        layer, expert = divmod(key, self.num_experts)
        self._moved.append(key)
        value = self._value[layer, expert]
        if value <= self._lowest[layer]:
            self._lowest[layer] = value
            self._least_seen[layer] = _NEVER
        if evicted >= 0:
            self._moved.append(evicted)
            layer, expert = divmod(evicted, self.num_experts)
            if self._least[layer] == expert:
                self._least_seen[layer] = _NEVER

    def urgency(self, keys: np.ndarray) -> np.ndarray:
        """The least value first: whoever comes last need not make room for the others."""
        if len(keys) < 2:
            return keys
        if self._all_changed:
            self._look_at_all()
        layer = int(keys[0]) // self.num_experts
        return keys[self._values(layer)[keys - layer * self.num_experts].argsort(kind="stable")]

    def _reopen(self) -> None:
        for key in self._moved:
            layer, expert = divmod(key, self.num_experts)
            self._open[layer, expert] = absent = self._slot_of[layer, expert] < 0
            if absent:
                self._highest[layer] = max(self._highest[layer], self._value[layer, expert])
        self._moved.clear()

    def next_prefetch(self) -> int:
        if self._all_changed:
            self._look_at_all()
        highest = self._highest
        while True:
            layer = int(highest.argmax())
            if highest[layer] <= 0:
                return -1
            if self._wanted_seen[layer] == self._layer:
                expert = self._wanted[layer]
                if self._slot_of[layer, expert] < 0:
                    return layer * self.num_experts + expert
                self._open[layer, expert] = False
            open_values = np.where(self._open[layer] & self._likely[layer], self._values(layer), -1.0)
            expert = int(open_values.argmax())
            highest[layer] = open_values[expert]
            self._wanted[layer], self._wanted_seen[layer] = expert, self._layer

    def victim(self, key: int, urgent: bool) -> int:
        if self._all_changed:
            self._look_at_all()
        lowest, layers = self._lowest_free()
        if not layers:
            return -1
        starved = self.working < STARVED
        if urgent:
            if starved and self.slots.reuses_at_once and self._least_running() < lowest:
                return -1
        else:
            layer, expert = divmod(key, self.num_experts)
            if lowest * GAIN >= self._values(layer)[expert]:
                return -1
        tied = [self._slot_of[layer][self._value[layer] == lowest] for layer in layers]
        slots = tied[0] if len(tied) == 1 else np.concatenate(tied)
        slot = int(slots[self.slots.order[slots].argmin()]) if len(slots) > 1 else int(slots[0])
        return -1 if starved and not urgent and not self._worth(key, slot) else slot

    def _least_running(self) -> np.float32:
        """The lowest value of an expert of the running layer that has arrived and is not yet computed; or infinite."""
        slots = self._slot_of[self._layer]
        waiting = (self.slots.state[slots] == READY) & (self.slots.order[slots] == KEPT)
        return self._values(self._layer)[waiting].min(initial=np.inf)

    def _worth(self, key: int, slot: int) -> bool:
        """Whether an expert should come before it is asked for, into this slot."""
        layer, expert = divmod(key, self.num_experts)
        ahead = layer - self._layer
        step = 0 if ahead > 0 else 1
        if step >= len(self._first):
            return False
        saved = self._first[step, layer, expert] * min(1.0, (step * self.num_layers + ahead) * self.hidden)
        victim_layer, victim = divmod(int(self.slots.key_of[slot]), self.num_experts)
        lost = np.float32(0)
        for first in self._first[0 if victim_layer > self._layer else 1 :]:
            lost += first[victim_layer, victim]
        return bool(saved > lost)

    def _lowest_free(self) -> tuple[np.float32, list[int]]:
        """The lowest value of an expert whose slot may be overwritten (infinite if there is none), and its layers."""
        bounds, lowest = self._lowest.copy(), np.float32(np.inf)
        layers: list[int] = []
        while True:
            layer = int(bounds.argmin())
            bound = bounds[layer]
            if bound > lowest or bound == np.inf:
                return lowest, layers
            bounds[layer] = np.inf
            found = self._lowest_free_of(layer)
            if found < lowest:
                lowest, layers = found, [layer]
            elif found == lowest < np.inf:
                layers.append(layer)

    def _lowest_free_of(self, layer: int) -> np.float32:
        order, slots = self.slots.order, self._slot_of[layer]
        if self._least_seen[layer] != self._layer:
            held = np.where(slots >= 0, self._values(layer), np.inf)
            least = int(held.argmin())
            self._lowest[layer] = held[least]
            self._least[layer], self._least_seen[layer] = least, self._layer
        least = self._least[layer]
        if order[slots[least]] != KEPT:
            return self._lowest[layer]
        return np.where(order[slots] != KEPT, self._values(layer), np.float32(np.inf)).min()

    def _values(self, layer: int) -> np.ndarray:
        """Values [E] of a layer's experts as seen from the layer that asked last."""
        value = self._value[layer]
        if self._seen[layer] != self._layer:
            steps, layers, ahead, product = len(self._first), self.num_layers, layer - self._layer, self._product[layer]
            # of an expert used with frequency q per step, the next use is L (1 - q) / q layer-steps later on average
            np.multiply(self._frequency[layer], (steps - 1) * layers + ahead, out=value)
            value += layers
            np.divide(self._later[layer], value, out=value)
            for h in range(0 if ahead > 0 else 1, steps):
                np.multiply(self._first[h, layer], self._weight[h * layers + ahead], out=product)
                value += product
            self._seen[layer] = self._layer
        return value

    def _look_at_all(self) -> None:
        """All values anew, and bounds that are met."""
        steps, layers, value = len(self._first), self.num_layers, self._value
        ahead = np.arange(layers)[:, None] - self._layer
        np.multiply(self._frequency, ((steps - 1) * layers + ahead).astype(np.float32), out=value)
        value += layers
        np.divide(self._later, value, out=value)
        for h, first in enumerate(self._first):
            np.multiply(first, self._weight[np.maximum(h * layers + ahead, 0)], out=self._product)
            value += self._product
        self._seen = [self._layer] * layers
        every = np.arange(layers)
        open_values = np.where(self._open & self._likely, value, -1.0)
        experts = open_values.argmax(1)
        self._highest = open_values[every, experts]
        self._wanted, self._wanted_seen = experts.tolist(), [self._layer] * layers
        held = np.where(self._slot_of >= 0, value, np.inf)
        experts = held.argmin(1)
        self._lowest = held[every, experts]
        self._least, self._least_seen = experts.tolist(), [self._layer] * layers
        self._all_changed = False


def _first_uses(uses: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """From P(used in a step) [H, L, E], steps taken as independent: P(first used in it), and P(never) [L, E]."""
    first = np.empty_like(uses)
    never = np.ones(uses.shape[1:], uses.dtype)
    for h, use in enumerate(uses):
        first[h] = never * use
        never -= first[h]
    return first, never
