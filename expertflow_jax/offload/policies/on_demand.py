"""Plain offloading: an expert travels when a layer asks for it, into the slot used least recently, whatever
its layer.
"""

from expertflow_jax.offload.policies.base import CachePolicy


class OnDemand(CachePolicy):
    """One LRU cache shared by all layers; no prefetch."""

    name = "on_demand"
