"""Plain offloading: an expert travels when a layer asks for it, into the slot used least recently, whatever
its layer.
"""

from expertflow_jax.offload.policies.base import CachePolicy


class OnDemand(CachePolicy):
    """One LRU cache shared by all layers; no prefetch."""

    name = "on_demand"

    def concern(self, top_k: int) -> str:
        """LRU over a cycle that is longer than the cache evicts every expert just before it would be used again."""
        cycle = self.num_layers * top_k
        if self.slots.num_slots >= min(cycle, len(self.slots.slot_of)):
            return ""
        return (
            f"policy on_demand: {self.slots.num_slots} slots are fewer than the {cycle} experts that one token uses "
            f"({self.num_layers} layers, top {top_k}), so that decoding hardly ever hits; raise memory_budget or "
            "cache_fraction, or take policy cache_moe"
        )
