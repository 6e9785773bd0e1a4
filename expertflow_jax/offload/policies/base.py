"""What a cache policy decides: which expert travels next unasked, and which one makes room. One file per
system.

To add a policy: subclass `CachePolicy`, override what differs, and name it in `policies/__init__.py`. The
engine does the rest: it counts, moves bytes, keeps what the running layer needs, and asks at the moment a
transfer starts. A policy only reads `self.slots` (see `SlotPool`: `slot_of`, `key_of`, `order`). It must
be a deterministic function of what it was told; ties go to the lowest (layer, expert).
Axes: H steps of the horizon, L MoE layers, E experts, S slots, N tokens. A key is layer * E + expert.
"""

import numpy as np

from expertflow_jax.offload.slots import SlotPool


class CachePolicy:
    """Defaults: one cache shared by all layers, least recently used goes, nothing travels unasked.

    Attributes:
      name: as in configs and results.
      prefetches: whether `next_prefetch` ever names an expert.
      working: set by the engine: the share of the time in which compute did not wait for experts (`Balance`).
      hidden: set by the engine: how much of a transfer the compute of one layer-step hides; infinite if transfers take
        no time.
      reuses_at_once: set by the engine: an expert may be overwritten once what reads it has been dispatched.
      uses_forecast: whether `begin_step` wants a horizon, so that mispredictions can be told and counted.
      slots, num_layers, num_experts: set by `attach`.
    """

    name = ""
    prefetches = False
    working = 1.0
    hidden = float("inf")
    reuses_at_once = True
    uses_forecast = False

    def attach(self, slots: SlotPool) -> None:
        """Called once by the engine, and again when the cache starts anew: forget everything.

        Raises:
          InputError: the policy cannot work with so few slots.
        """
        self.slots = slots
        self.num_layers = slots.num_layers
        self.num_experts = slots.num_experts
        self._everywhere = slice(0, slots.num_slots)

    def begin_step(self, horizon: np.ndarray | None) -> None:
        """A step begins. horizon float32 [H, L, E]: probability that this step (row 0) and the following ones
        use each expert; None if nobody forecasts.
        """

    def observe(self, layer: int, experts: np.ndarray) -> None:
        """The router of `layer` has chosen: experts int32 [n], ascending. They are safe until computed."""

    def observe_hidden(self, layer: int, router_probs: np.ndarray) -> None:
        """What the router of MoE layer `layer`, still ahead, says of the present hidden state: float32 [N,
        E].
        """

    def home(self, layer: int) -> slice:
        """Slots that may hold experts of `layer`; at least one."""
        return self._everywhere

    def urgency(self, keys: np.ndarray) -> np.ndarray:
        """Missing experts of the running layer, int64 [n] ascending, in the order in which they are to come."""
        return keys

    def next_prefetch(self) -> int:
        """Key of the expert that should travel now because it will be needed, absent from the slots; -1 for
        none.

        Called whenever the link is free and nothing urgent waits.
        """
        return -1

    def victim(self, key: int, urgent: bool) -> int:
        """The slot to overwrite so that expert `key` can travel: one of `home` whose `order` is not KEPT; -1 if there
        is none. It may also refuse with -1, but not if the expert is `urgent`, as compute waits for it, unless an
        expert of the running layer that has arrived is about to be computed: the engine asks again then.
        """
        return self.slots.oldest(self.home(key // self.num_experts))

    def moved(self, key: int, evicted: int) -> None:
        """The expert `key` has been given the slot of the expert `evicted` (-1: it was empty)."""
