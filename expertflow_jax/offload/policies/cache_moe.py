"""Cache-MoE (mixtral-offloading, 2312.17238, section 3.1): a fixed number of experts of every layer is kept, LRU.

S slots over L layers are shared out by `split_evenly`.
"""

from expertflow_jax.offload.policies.base import CachePolicy, split_evenly
from expertflow_jax.offload.slots import SlotPool


class CacheMoE(CachePolicy):
    """One LRU cache per layer; no prefetch."""

    name = "cache_moe"

    def attach(self, slots: SlotPool) -> None:
        super().attach(slots)
        self._homes = split_evenly(slots.num_slots, slots.num_layers)

    def home(self, layer: int) -> slice:
        return self._homes[layer]
