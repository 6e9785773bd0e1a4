"""Pre-gated MoE's double buffer (2308.12066, sections 4.2 and 4.3) with its gates as forecasts: its lossless half.

While layer l computes, a gate that sits in layer l names the experts of layer l + 1, and exactly these travel into the
other of two buffers. When layer l + 1 begins, the buffers change places; nothing is kept beyond its use, so a step
moves every expert that it uses. The first layer has no gate before it: its experts come when it asks. The last layer
fetches nothing ahead. (ranggihwang/Pregated_MoE at 6b0a666, fetcher.cc and moe_kernels.cu.)
In the paper the pre-gate *replaces* the router of layer l + 1, which changes the model. Here the router stays and the
gate only says what travels: a wrong guess costs time, never an answer.
Liberties: the gates are distilled from the routers (`train.pregate`); for a model without such, the next layer's own
router on the hidden state at hand stands for them, as in `speculative`. Each buffer is half
of the slots, at most E of them, where the paper's has room for all E experts; what does not fit comes when its layer
asks.
"""

import numpy as np

from expertflow_jax.offload.policies.base import CachePolicy, split_evenly
from expertflow_jax.offload.policies.speculative import likeliest
from expertflow_jax.offload.slots import KEPT, SlotPool


class PregatedForecast(CachePolicy):
    """Two buffers that layers fill in turn with what a gate of the layer before foresees."""

    name = "pregated_forecast"
    prefetches = True
    forecast = "hidden"

    def __init__(self, gates: str = ""):
        """
        Args:
          gates: folder or name of the model's pre-gates; empty: those that come with it.
        """
        self.gates = gates

    def attach(self, slots: SlotPool) -> None:
        super().attach(slots)
        self._buffers = split_evenly(min(slots.num_slots, 2 * self.num_experts), 2)
        self._queue: list[int] = []
        self._begins = True

    def initial_keys(self) -> np.ndarray:
        return np.full(self.slots.num_slots, -1, np.int32)

    def begin_step(self, horizon: np.ndarray | None) -> None:
        self._queue = []
        self._begins = True

    def leaving(self, layer: int) -> np.ndarray:
        free_S = self.slots.order[:-1] != KEPT
        if not self._begins:
            free_S &= self.slots.key_of // self.num_experts != layer
        self._begins = False
        return free_S.nonzero()[0]

    def home(self, layer: int) -> slice:
        return self._buffers[layer % 2]

    def observe(self, layer: int, counts: np.ndarray) -> None:
        self._queue = []

    def observe_hidden(self, layer: int, router_probs: np.ndarray, top_k: int) -> None:
        self._queue = (layer * self.num_experts + likeliest(router_probs, top_k)).tolist()

    def next_prefetch(self) -> int:
        return next((key for key in self._queue if self.slots.slot_of[key] < 0), -1)

    def victim(self, key: int, urgent: bool) -> int:
        return super().victim(key, urgent) if urgent else -1
