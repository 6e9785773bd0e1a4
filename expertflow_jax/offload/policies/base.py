"""What a cache policy decides: which expert travels next unasked, and which one makes room. One file per system.

To add a policy, subclass `CachePolicy` and override what differs. It can be named at once as "package.module:Class"
wherever a policy is named; one that belongs to this package is also entered in `policies/__init__.py`. The engine does
the rest: it counts, moves bytes, keeps what the running layer needs, and asks at the moment a transfer starts. A policy
only reads `self.slots` (see `SlotPool`: `slot_of`, `key_of`, `order`). It must be a deterministic function of what it
was told; ties go to the lowest (layer, expert). All its methods are called with the engine's lock held.
Axes: H steps of the horizon, L MoE layers, E experts, S slots, N tokens of the step. A key is layer * E + expert.
"""

import itertools
from collections.abc import Sequence
from typing import Literal

import numpy as np
from jaxtyping import Float, Int

from expertflow_jax.offload.policies.tuning import Tuning
from expertflow_jax.offload.slots import SlotPool

_NO_SLOTS = np.zeros(0, np.int64)
Forecast = Literal["none", "hidden", "predictor", "truth"]


def split_evenly(num_slots: int, num_layers: int) -> list[slice]:
    """Slots of each layer, in order of layers: S // L each, the first S % L layers one more. With fewer slots than
    layers, layer l shares slot l mod S.
    """
    if num_slots < num_layers:
        return [slice(layer % num_slots, layer % num_slots + 1) for layer in range(num_layers)]
    each, more = divmod(num_slots, num_layers)
    bounds = [layer * each + min(layer, more) for layer in range(num_layers + 1)]
    return [slice(begin, end) for begin, end in itertools.pairwise(bounds)]


class CachePolicy:
    """Defaults: one cache shared by all layers, least recently used goes, nothing travels unasked.

    A step calls, in order: `weigh`, `begin_step`, and for each layer that runs `leaving` and `observe`; in between,
    where somebody wants it, `update_horizon`, `observe_hidden`, `urgency`, `next_prefetch`, `vacant`, `victim` and
    `moved`.

    Attributes:
      name: as in configs and results.
      prefetches: whether `next_prefetch` ever names an expert.
      lossless: whether outputs equal the resident run's bit for bit, as far as it is up to the policy.
      forecast: where it learns of what comes. "none": from what was used. "hidden": from `observe_hidden`, what coming
        routers say of the running step's own hidden states. "predictor": from horizons that a predictor makes. "truth":
        from horizons of what a recorded run of the same requests really used.
      tuning: tuned numbers; all policies are told of time by `balance_memory` and `balance_unknown` of it.
      working: the share of the time in which compute did not wait for experts (`Balance`), by `weigh`.
      hidden: how much of a transfer the compute of one layer-step hides, by `weigh`; infinite if none takes time.
      slots, num_layers, num_experts: set by `attach`.
    """

    name = ""
    prefetches = False
    lossless = True
    forecast: Forecast = "none"
    tuning = Tuning()
    working = 1.0
    hidden = float("inf")

    def attach(self, slots: SlotPool) -> None:
        """Called once by the engine, and again when the cache starts anew, with all slots empty: forget everything.

        Raises:
          InputError: the policy cannot work with so few slots.
        """
        self.slots = slots
        self.num_layers = slots.num_layers
        self.num_experts = slots.num_experts
        self._everywhere = slice(0, slots.num_slots)

    def concern(self, top_k: int) -> str:
        """One line for the user where so few slots cannot help a model that routes each token to `top_k` experts of
        every layer; empty if there is none. Asked after `attach`."""
        return ""

    @staticmethod
    def least_slots(num_layers: int, num_experts: int) -> int:
        """How many slots the policy needs for a model of this size; `attach` refuses fewer."""
        return 1

    def initial_keys(self) -> Int[np.ndarray, "S"]:
        """The expert that each slot holds before timing starts, -1 for none; each within its `home`, none twice.

        Asked after `attach`; `moved` follows for each. By default the same for every policy whose experts may be in any
        slot: experts in index order, spread evenly over the layers; homes are filled alike.
        """
        homes = [self.home(layer) for layer in range(self.num_layers)]
        if all(home == self._everywhere for home in homes):
            homes = split_evenly(self.slots.num_slots, self.num_layers)
        return self.filled(homes)

    def filled(self, homes: Sequence[slice]) -> Int[np.ndarray, "S"]:
        """`initial_keys` where the first experts of every layer are put into these slots of it."""
        keys_S = np.full(self.slots.num_slots, -1, np.int32)
        for layer, home in enumerate(homes):
            empty = [slot for slot in range(home.start, home.stop) if keys_S[slot] < 0][: self.num_experts]
            keys_S[empty] = layer * self.num_experts + np.arange(len(empty), dtype=np.int32)
        return keys_S

    def weigh(self, working: float, hidden: float) -> None:
        """Before each step: how compute and transfers stand to each other (see the attributes)."""
        self.working, self.hidden = working, hidden

    def begin_batch(self) -> None:
        """A batch of sequences begins: the next step is its first."""

    def begin_step(self, horizon: Float[np.ndarray, "H L E"] | None) -> None:
        """A step begins. horizon float32: probability that this step (row 0) and the following ones use each expert;
        None if nobody forecasts, or `forecast` asks for none.
        """

    def update_horizon(self, horizon: Float[np.ndarray, "H L E"]) -> None:
        """A better horizon of the running step and the following ones. Row 0 says nothing new of layers that ran."""

    def observe(self, layer: int, counts: Int[np.ndarray, "E"]) -> None:
        """The router of `layer` has chosen: counts int32, how many of the step's tokens chose each expert (1 each where
        only the set is known). What was chosen is safe until computed.
        """

    def observe_hidden(self, layer: int, router_probs: Float[np.ndarray, "N E"], top_k: int) -> None:
        """What the router of MoE layer `layer`, still ahead, says of the present hidden state of each token; it will
        choose `top_k` experts of each. Called for policies with `forecast = "hidden"` alone.
        """

    def leaving(self, layer: int) -> Int[np.ndarray, "n"]:
        """Slots that are emptied before the experts of `layer`, which is about to ask, are looked for: READY ones whose
        `order` is not KEPT. For systems that keep nothing beyond its use; all others name none.
        """
        return _NO_SLOTS

    def home(self, layer: int) -> slice:
        """Slots that may hold experts of `layer`; at least one."""
        return self._everywhere

    def urgency(self, keys: np.ndarray) -> np.ndarray:
        """Missing experts of the running layer, int64 [n] ascending, in the order in which they are to come.

        Other absent experts may stand between: they travel in this order too, as prefetches.
        """
        return keys

    def next_prefetch(self) -> int:
        """Key of the expert that should travel now because it will be needed, absent from the slots; -1 for
        none.

        Called whenever the link is free and nothing urgent waits.
        """
        return -1

    def vacant(self, key: int, urgent: bool) -> int:
        """The empty slot for the expert `key`, or -1; without one, `victim` is asked."""
        return self.slots.first_empty(self.home(key // self.num_experts))

    def victim(self, key: int, urgent: bool) -> int:
        """The slot to overwrite so that expert `key` can travel: one of `home` whose `order` is not KEPT; -1 if there
        is none. It may also refuse with -1, but not if the expert is `urgent`, as compute waits for it, unless an
        expert of the running layer that has arrived is about to be computed: the engine asks again then.
        """
        return self.slots.oldest(self.home(key // self.num_experts))

    def moved(self, key: int, evicted: int) -> None:
        """The expert `key` has been given the slot of the expert `evicted` (-1: it was empty), also when the cache is
        filled before timing starts.
        """
