"""Cache-MoE (mixtral-offloading, 2312.17238, section 3.1): a fixed number of experts of every layer is kept,
LRU.

S slots over L layers: S // L each, the first S % L layers one more. With fewer slots than layers, layer l
shares slot l mod S.
"""

import itertools

from expertflow_jax.offload.policies.base import CachePolicy
from expertflow_jax.offload.slots import SlotPool


def split_evenly(num_slots: int, num_layers: int) -> list[slice]:
    """Slots of each layer, in order of layers."""
    if num_slots < num_layers:
        return [slice(layer % num_slots, layer % num_slots + 1) for layer in range(num_layers)]
    each, more = divmod(num_slots, num_layers)
    bounds = [layer * each + min(layer, more) for layer in range(num_layers + 1)]
    return [slice(begin, end) for begin, end in itertools.pairwise(bounds)]


class CacheMoE(CachePolicy):
    """One LRU cache per layer; no prefetch."""

    name = "cache_moe"

    def attach(self, slots: SlotPool) -> None:
        super().attach(slots)
        self._homes = split_evenly(slots.num_slots, slots.num_layers)

    def home(self, layer: int) -> slice:
        return self._homes[layer]
