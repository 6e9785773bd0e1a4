"""ExpertFlow's predictive expert cache (2410.17954, section on the cache): the forecast decides what comes
and goes.

The paper prefetches along the predicted path and evicts what it does not foresee; how to weigh an uncertain
forecast it leaves open. Here every expert has one *value*: the hits that a slot may expect from it per
layer-step it would hold it, the probability of its next use divided by the distance to it, summed over when
that may be (hit density; with a certain forecast this is Belady's order). Beyond the horizon a running
frequency per expert stands in. The absent expert of the highest value travels if it beats the lowest value in
the slots.
Axes: H steps of the horizon, L MoE layers, E experts.
"""

import numpy as np

from expertflow_jax.offload.policies.base import CachePolicy
from expertflow_jax.offload.slots import SlotPool

MEMORY = 0.3  # weight of the latest step in the running frequency
FIRST_GUESS = 0.1  # frequency of an expert before its layer has been seen


class ExpertFlow(CachePolicy):
    """Shared slots, prefetch by value, eviction of the lowest value."""

    name = "expertflow"
    uses_forecast = True
    mode = "hyper"
    offset = 1.0
    margin = 1.0
    gamma = 0.9

    def attach(self, slots: SlotPool) -> None:
        super().attach(slots)
        self._frequency = np.full((self.num_layers, self.num_experts), FIRST_GUESS)
        self._layers = np.arange(self.num_layers, dtype=np.float64)[:, None]
        self.begin_step(None)

    def begin_step(self, horizon: np.ndarray | None) -> None:
        if horizon is None:
            horizon = np.zeros((0, self.num_layers, self.num_experts))
            horizon = self._frequency[None]
        p = np.asarray(horizon, np.float64)
        H = len(p)
        f = np.zeros((H, *p.shape[1:]))
        rem = np.ones(p.shape[1:])
        f1 = np.zeros_like(f)
        rem1 = np.ones_like(rem)
        for h in range(H):
            f[h] = rem * p[h]
            rem = rem * (1 - p[h])
            if h:
                f1[h] = rem1 * p[h]
                rem1 = rem1 * (1 - p[h])
        self._f, self._rem = f, rem
        self._f1, self._rem1 = f1, rem1
        self._position = -1
        self._value = None

    def observe(self, layer: int, experts: np.ndarray) -> None:
        used = np.zeros(self.num_experts)
        used[experts] = 1.0
        self._frequency[layer] += MEMORY * (used - self._frequency[layer])
        self._f[:, layer] = self._f1[:, layer]
        self._rem[layer] = self._rem1[layer]
        self._position = layer
        self._value = None

    def _values(self):
        if self._value is None:
            L = self.num_layers
            v = 0.0
            H = len(self._f)
            pi = np.clip(self._frequency, 1e-3, 1 - 1e-3)
            if self.mode == "hyper":
                for h in range(H):
                    d = h * L + self._layers - self._position + self.offset
                    v = v + np.where(d > 0, self._f[h] / np.maximum(d, 0.5), 0)
                dt = H * L + self._layers - self._position + self.offset
                v = v + self._rem * pi / (pi * dt + L * (1 - pi))
            elif self.mode == "exp":
                g = self.gamma
                for h in range(H):
                    v = v + self._f[h] * g ** (h * L + self._layers - self._position)
                gl = g**L
                v = v + self._rem * g ** (H * L + self._layers - self._position) * pi / (1 - (1 - pi) * gl)
            elif self.mode == "dist":
                d = 0
                for h in range(H):
                    d = d + self._f[h] * (h * L + self._layers - self._position)
                d = d + self._rem * (H * L + self._layers - self._position + L * (1 - pi) / pi)
                v = 1 / d
            self._value = v.reshape(-1)
        return self._value

    def next_prefetch(self) -> int:
        v = np.where(self.slots.slot_of < 0, self._values(), -1.0)
        return int(v.argmax())

    def victim(self, key: int, candidates: np.ndarray, urgent: bool) -> int:
        v = self._values()
        value = v[self.slots.key_of[candidates]]
        lowest = value.min()
        if not urgent and lowest * self.margin >= v[key]:
            return -1
        return super().victim(key, candidates[value == lowest], urgent)
