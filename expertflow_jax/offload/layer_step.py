"""The layer-step that runs: what it asked for, the slots that it holds, and how it gives them back. (See engine.py.)

Every call is made with the engine's lock held.
Axes: E experts, n of them that are meant. A key is layer * E + expert.
"""

import numpy as np
from jaxtyping import Bool, Int

from expertflow_jax.offload.counts import Counts
from expertflow_jax.offload.guard import Guard
from expertflow_jax.offload.policies.base import CachePolicy
from expertflow_jax.offload.slots import SlotPool
from expertflow_jax.offload.traffic import Traffic


class LayerStep:
    """One after another, on the engine's own parts.

    Attributes:
      holding: slots are kept from being overwritten until the layer-step ends.
      noted: the layer whose lossy request has been counted, so that its rounds do not count again; -1: none.
      reads_last: slots whose experts a computation may still read are the last to be given away.
    """

    def __init__(
        self, pool: SlotPool, policy: CachePolicy, traffic: Traffic, counts: Counts, guard: Guard, reads_last: bool
    ):
        self.holding = False
        self.noted = -1
        self.reads_last = reads_last
        self._pool, self._policy, self._traffic = pool, policy, traffic
        self._counts, self._guard = counts, guard

    def next(self) -> None:
        """Ends what the last one left. Its routing read is behind us, so its computations have ended too."""
        self.end()
        busy = self._traffic.busy
        if busy:
            self._pool.let_go(np.array(busy))
            busy.clear()

    def empty_slots(self, layer: int) -> None:
        """What the policy does not keep beyond its use leaves before `layer` is looked for."""
        if self._traffic.scarce and len(slots := self._policy.leaving(layer)):
            self._counts["wasted_prefetches"] += int(np.count_nonzero(self._pool.unused_prefetch[slots]))
            self._pool.vacate(slots)

    def count(self, slots: Int[np.ndarray, "n"], hit: Bool[np.ndarray, "n"]) -> None:
        """It asks for experts in these slots, -1 where there is none; hit: those that have arrived."""
        self._traffic.tick += 1
        self._counts.layer_step(self._pool, slots, hit)

    def observe(self, layer: int, experts: Int[np.ndarray, "n"], counts: Int[np.ndarray, "E"] | None) -> None:
        """Tells the policy what was chosen, and by how many tokens each; counts None: by one."""
        if not self._traffic.scarce:
            return
        if counts is None:
            counts = np.zeros(self._pool.num_experts, np.int32)
            counts[experts] = 1
        self._policy.observe(layer, counts)

    def hold(self, slots: Int[np.ndarray, "n"]) -> None:
        """These slots stay until it ends or has computed what they hold; -1 is passed over."""
        self._pool.keep(slots)
        self.holding = True

    def send_for(self, keys: Int[np.ndarray, "n"], urgent: Int[np.ndarray, "m"]) -> None:
        """It waits for these keys; those of `urgent` have to travel, in this order."""
        self._traffic.needed.update(keys.tolist())
        self._traffic.urgent.extend(urgent.tolist())

    def take_arrivals(self) -> tuple[Int[np.ndarray, "n"], Int[np.ndarray, "n"]]:
        """(keys, slots) of what it waited for and has arrived, ascending; it waits for them no more."""
        keys = np.array(sorted(self._traffic.here), np.int64)
        self._traffic.needed.difference_update(self._traffic.here)
        self._traffic.here.clear()
        return keys, self._pool.slot_of[keys]

    def computed(self, keys: Int[np.ndarray, "n"], slots: Int[np.ndarray, "n"]) -> None:
        """The computation that reads these experts has been dispatched: they may go."""
        if self.reads_last:
            self._traffic.busy += slots.tolist()
        else:
            self._pool.let_go_of(keys, slots, self._traffic.tick)
        if not self._traffic.needed:
            self.holding = False

    def drop_put_off(self) -> None:
        """Nobody will ask again for what was put off: its slots go with the others."""
        if self._traffic.put_off:
            self._traffic.put_off.clear()
            self.holding = True

    def end(self) -> None:
        """Nothing is needed any more, also if the rounds were left unfinished."""
        traffic = self._traffic
        self._guard.next_layer()
        self.noted = -1
        traffic.urgent.clear()
        if not self.holding:
            return
        self.holding = False
        traffic.needed.clear()
        traffic.here.clear()
        everywhere = slice(0, self._pool.num_slots)
        pinned = self._pool.kept(everywhere)
        if traffic.busy or traffic.put_off:
            pinned = np.setdiff1d(pinned, [*traffic.busy, *traffic.put_off_slots(everywhere)])
        self._pool.let_go(pinned)
