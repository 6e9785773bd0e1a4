"""The predictive expert cache (ExpertFlow, 2410.17954; DESIGN section 7): serves the experts that a layer asks for.

The words, exactly:
- A *layer-step* is one MoE layer in one step (prefill or one decode). It *asks* once, for the set of experts that its
  router chose; every (layer, expert) of the set counts once, at that moment, as a *hit* (in a slot, arrived), *late*
  (its transfer has started and not arrived) or *miss* (neither; a prefetch that has not started is a miss).
  hit_rate = hits / (hits + late + misses); 1 if nothing was asked for.
- A lossless layer-step is served in *rounds*: hits first, then the others as they arrive, so that compute goes on
  while experts travel. Misses travel as *urgent* transfers, in the policy's order, ahead of everything else; nothing
  already in a slot or on its way is sent again.
- The experts of the running layer-step that are not yet computed are *pinned*: never victims. Computed ones may go at
  once, so that any number of slots from one up serves any number of experts.
- A *correction* is a miss of a lossless layer-step that the forecast in force had not called for (probability below
  one half; of a forecast from hidden states: no token's top k had it): a misprediction repaired at run time. A miss
  that was foreseen but found no time or slot is none, and policies without a forecast have none.
- A *prefetch* is pulled from the policy when the link is free, and its victim chosen then; if the policy would rather
  keep what it has, nothing travels. A transfer occupies its slot from its start: bytes on the device never exceed
  slots * expert_bytes, transfers in flight included.
- A *wasted prefetch* left its slot without having been asked for.
- After a lossy miss the expert is fetched in the *background*, if the miss policy wants it, when the link has nothing
  better and the cache policy grants a slot; at most S wait, the oldest are forgotten.

Under a virtual clock all this is a deterministic function of what was called. Under a real one a thread of the link's
own asks for transfers (traffic.py); one lock guards the state, copies run outside it.
Axes: H steps of the horizon, L MoE layers, E experts, S slots. A key is layer * E + expert.
"""

import threading
import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from expertflow_jax.errors import InputError
from expertflow_jax.models.device_form import DeviceForm, device_form
from expertflow_jax.offload.balance import Balance
from expertflow_jax.offload.clock import Clock, VirtualClock, bookkeeping
from expertflow_jax.offload.counts import Counts
from expertflow_jax.offload.foresight import Foresight
from expertflow_jax.offload.guard import Guard
from expertflow_jax.offload.layer_step import LayerStep
from expertflow_jax.offload.link import LinkSpec, TransferLink, VirtualLink
from expertflow_jax.offload.policies import make_policy
from expertflow_jax.offload.policies.base import CachePolicy
from expertflow_jax.offload.slots import SlotPool
from expertflow_jax.offload.store import HostTier
from expertflow_jax.offload.traffic import Traffic
from expertflow_jax.offload.worker import RealLink


class ExpertCacheEngine:
    """Slots, policy and link together. One thread at a time calls it (see `Guard`).

    Every call raises RuntimeError once the engine is closed, and from a second thread while a step of another is open;
    `stats`, `end_step` and `close` alone go on after closing.

    Attributes:
      store: the host tier.
      copies: the same experts quantised, or None.
      clock: where time is kept.
      pool: the slots.
      form: how they are written.
    """

    def __init__(
        self,
        store: HostTier,
        num_slots: int,
        policy: CachePolicy | type[CachePolicy] | str,
        link: LinkSpec | str = "direct",
        clock: Clock | None = None,
        window: int | None = None,
        disk: LinkSpec | str = "direct",
        copies: HostTier | None = None,
        form: DeviceForm | None = None,
    ):
        """
        Args:
          store: an `ExpertStore`, or `ExpertSizes` to simulate without weights.
          num_slots: S; more than there are experts is the same as all of them.
          policy: an instance nobody else uses, a class, a name or "package.module:Class" (see `make_policy`).
          link: see `LinkSpec.parse`.
          clock: a new virtual one by default.
          window: transfers under way at most; the link's own default if None.
          disk: from files to host memory, of a store that leaves experts on disk; counts on the virtual clock alone.
          copies: the same experts quantised, see `rounds`; one takes a whole slot.
          form: how slots are written; what suits the device by default.

        Raises:
          InputError: fewer than one slot, or fewer than the policy needs; an unknown policy or link.
        """
        if num_slots < 1:
            raise InputError(f"{num_slots} expert slots: at least 1 is needed; raise memory_budget or cache_fraction")
        self.store = store
        self.copies = copies
        self.num_slots = min(num_slots, store.num_layers * store.num_experts)
        self.clock = clock or VirtualClock()
        self.policy = make_policy(policy)
        self.form = form or device_form()
        reads_last = not self.clock.virtual and self.form.reads_last
        sizes = (store.num_layers, store.num_experts, store.expert_bytes)
        self.pool = SlotPool(self.num_slots, *sizes, self.form, reuses_at_once=not reads_last)
        self.policy.attach(self.pool)
        self._changed = threading.Condition(threading.RLock())
        self._link = self._make_link(LinkSpec.parse(link), window)
        self._foresight = Foresight(store.num_layers, store.num_experts)
        self._counts = Counts()
        parts = (store, self.pool, self.policy, self.clock)
        self._traffic = Traffic(*parts, LinkSpec.parse(disk), self._changed, self._counts, self._foresight, copies)
        self._guard = Guard()
        self._layer_step = LayerStep(self.pool, self.policy, self._traffic, self._counts, self._guard, reads_last)
        self._balance = Balance(self.policy.tuning, self._link, store.expert_bytes)
        self.reset_stats()
        self._link.attach(self._traffic)

    def _make_link(self, spec: LinkSpec, window: int | None) -> TransferLink:
        if self.clock.virtual:
            return VirtualLink(spec, self.clock, window or 2)
        link = RealLink(spec, self.clock, self._changed, window)
        weakref.finalize(self, link.end)  # the thread of an engine that nobody closes ends with it
        return link

    @property
    def forecasts(self) -> bool:
        """Whether a horizon is of use: the policy reads it, and not every expert is in its slot."""
        return self._traffic.scarce and self.policy.forecast in ("predictor", "truth")

    @property
    def watches_hidden(self) -> bool:
        """Whether `observe_hidden` is of use: the policy asks for it, and not every expert is in its slot."""
        return self._traffic.scarce and self.policy.forecast == "hidden"

    def warm_up(self) -> None:
        """Fills the slots before timing starts as the policy says (`CachePolicy.initial_keys`; by default experts in
        index order, spread evenly over the layers). Forgets what was there and what the policy had learnt; takes no
        time on the clock.

        Raises:
          RuntimeError: the policy wants an expert outside its home, or one twice.
        """
        with self._changed:
            self._guard.enter()
            self._guard.end_step()
            self._guard.next_layer()
            self._link.drain()
            self._traffic.forget()
            self._layer_step.holding = False
            self.pool.clear()
            self.store.reset()
            self._balance.forget()
            self.policy.attach(self.pool)
            self._traffic.fill(self.policy.initial_keys())

    def begin_batch(self) -> None:
        """A batch of sequences begins: the next step is its first."""
        with self._changed:
            self._guard.enter()
            if self._traffic.scarce:
                self.policy.begin_batch()

    @bookkeeping
    def begin_step(self, horizon: Float[np.ndarray, "H L E"] | None) -> None:
        """A step begins.

        Args:
          horizon: float32, probability that this step (row 0) and the following ones use each expert (exact zeros and
            ones for the oracle); None if nobody forecasts, or not yet (see `update_horizon`).

        Raises:
          InputError: the horizon does not fit the model.
        """
        if horizon is not None:
            horizon = self._foresight.checked(horizon)
        with self._changed:
            self._guard.enter()
            self._guard.begin_step()
            self._link.pump(changed=False)
            self._layer_step.next()
            self._counts["steps"] += 1
            self._balance.step(self.clock, self._traffic.tick)
            self.policy.weigh(self._balance.working, self._balance.transfers_per_layer(self._traffic.started))
            horizon = horizon if self.forecasts else None
            self._foresight.begin_step(horizon)
            if self._traffic.scarce:
                self.policy.begin_step(horizon)
            self._link.pump(changed=True)

    @bookkeeping
    def update_horizon(self, horizon: Float[np.ndarray, "H L E"]) -> None:
        """A better forecast within a step, as `begin_step` takes it; row 0 says nothing new of layers that have asked.

        Raises:
          InputError: the horizon does not fit the model.
        """
        horizon = self._foresight.checked(horizon)
        with self._changed:
            self._guard.enter()
            self._link.pump(changed=False)
            if self.forecasts:
                self._foresight.update(horizon)
                self.policy.update_horizon(horizon)
            self._link.pump(changed=True)

    def end_step(self) -> None:
        """The step's last layer has been dispatched, or the step is given up. Nothing happens in a closed engine."""
        if not self._guard.closed:
            self._leave(None)

    @bookkeeping
    def _leave(self, serial: int | None) -> None:
        """Ends the layer-step of this serial if it is still the running one; None: whichever it is, and the step."""
        with self._changed:
            if self._guard.closed or serial not in (None, self._guard.serial):
                return
            if serial is None:
                self._guard.enter()
                self._guard.end_step()
            self._link.pump(changed=False)
            if serial is None:
                self._layer_step.drop_put_off()
            self._layer_step.end()
            self._link.pump(changed=True)

    @bookkeeping
    def observe_hidden(self, layer: int, router_probs: Float[np.ndarray, "N E"], top_k: int) -> None:
        """Passes on what the router of MoE layer `layer`, still ahead, says of the present hidden state of each token.

        Of use if `watches_hidden`; call it once the running layer has asked, so that its misses travel first. What a
        token's `top_k` likeliest experts are counts as called for.
        """
        with self._changed:
            self._guard.enter()
            self._link.pump(changed=False)
            if self.watches_hidden:
                self._foresight.hidden(layer, router_probs, top_k)
                self.policy.observe_hidden(layer, router_probs, top_k)
            self._link.pump(changed=True)

    @bookkeeping
    def count_hits(self, layer_steps: int, hits: int) -> None:
        """Counts layer-steps that were computed without asking, because the pool holds all experts."""
        with self._changed:
            self._guard.enter()
            self._traffic.tick += layer_steps
            self._counts["layer_steps"] += layer_steps
            self._counts["hits"] += hits

    def usable(self, layer: int) -> Bool[np.ndarray, "E"]:
        """Experts of `layer` that have arrived, bool [E]; they stay until its rounds end or another layer begins."""
        num_experts = self.store.num_experts
        with self._changed:
            self._guard.enter()
            self._link.pump(changed=False)
            self._layer_step.next()
            self._layer_step.empty_slots(layer)
            row = slice(layer * num_experts, (layer + 1) * num_experts)
            arrived = self.pool.ready(row)
            self._layer_step.hold(self.pool.slot_of[row][arrived])
            return arrived & ~self.pool.quantized[self.pool.slot_of[row]]

    def copied(self, layer: int) -> Bool[np.ndarray, "E"]:
        """The same of experts that have arrived quantised; call it behind `usable`."""
        row = slice(layer * self.store.num_experts, (layer + 1) * self.store.num_experts)
        return self.pool.ready(row) & self.pool.quantized[self.pool.slot_of[row]]

    def note_lossy(
        self,
        layer: int,
        requested: Int[np.ndarray, "n"],
        usable: Bool[np.ndarray, "E"],
        counts: Int[np.ndarray, "E"] | None = None,
        later: Int[np.ndarray, "m"] | None = None,
        waits: bool = False,
    ) -> None:
        """Counts a layer-step under a lossy miss policy and lets the missing experts come in the background.

        Args:
          layer: MoE layer index.
          requested: int32 [n], ascending: what the router chose.
          usable: what `usable(layer)` said.
          counts: tokens of the step that chose each expert; 1 for each of `requested` where only the set is known.
          later: those that come in the background unless they are there; all by default.
          waits: `rounds` will be asked for absent experts too, which travel first.
        """
        first = layer * self.store.num_experts
        keys = first + np.asarray(requested, np.int64)
        wanted = keys if later is None else first + np.asarray(later, np.int64)
        with self._changed:
            self._guard.enter()
            hit = np.asarray(usable)[requested]
            self._layer_step.count(self.pool.slot_of[keys], hit)
            self._layer_step.noted = layer
            self.pool.last_used[self.pool.slot_of[keys[hit]]] = self._traffic.tick
            self._layer_step.observe(layer, requested, counts)
            self._traffic.fetch_later(wanted[self.pool.slot_of[wanted] < 0])
            if not waits:
                self._link.pump(changed=True)

    def rounds(
        self,
        layer: int,
        experts: Int[np.ndarray, "n"],
        counts: Int[np.ndarray, "E"] | None = None,
        quantized: Bool[np.ndarray, "E"] | None = None,
        put_off: Int[np.ndarray, "m"] | None = None,
        again: bool = False,
    ) -> Iterator[tuple[tuple[int, ...], tuple[Any, ...]]]:
        """Serves a layer-step: yields (experts, their device arrays) until every expert has been served once.

        Use a round's buffers (dispatch what reads them) before asking for the next round; afterwards their slots may
        be overwritten. On the virtual clock, spend the round's compute time meanwhile.

        Args:
          layer: MoE layer index.
          experts: int32 [n], ascending, distinct.
          counts: tokens of the step that chose each expert; 1 for each of `experts` where only the set is known.
          quantized: experts of which the quantised copy will do; it comes where nothing is there. None: of none.
          put_off: other experts of `layer` that travel behind these; to be asked for `again` within the step.
          again: the layer-step has been counted, and these are what it put off.

        Raises:
          InputError: an expert was never loaded into the store.
          RuntimeError: a transfer failed; or another layer-step, or the end of the step, has ended this one meanwhile.
        """
        first, buffers, serial = layer * self.store.num_experts, self.pool.buffers, -1
        try:
            keys = first + np.asarray(experts, np.int64)
            later = [] if put_off is None else (first + np.asarray(put_off, np.int64)).tolist()
            keys, slots = self._ask(layer, keys, experts, counts, quantized, later, again)
            serial = self._guard.serial
            while True:
                if len(keys):
                    yield tuple((keys - first).tolist()), tuple([buffers[slot] for slot in slots.tolist()])
                    self._computed(serial, keys, slots)
                if not self._traffic.needed:
                    return
                keys, slots = self._next_arrivals(serial)
        finally:
            if self._layer_step.holding:
                self._leave(serial)

    @bookkeeping
    def _ask(
        self,
        layer: int,
        keys: np.ndarray,
        experts: np.ndarray,
        counts: np.ndarray | None,
        quantized: np.ndarray | None,
        put_off: list[int],
        again: bool,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Counts and pins a layer-step's experts, sends for the missing ones; returns (keys, slots) that are here."""
        pool, layer_step = self.pool, self._layer_step
        with self._changed:
            self._guard.enter()
            self._link.pump(changed=False)
            counted = again or layer_step.noted == layer
            layer_step.next()
            if again:
                self._traffic.put_off.clear()
            else:
                layer_step.empty_slots(layer)
            slots = pool.slot_of[keys]
            here, missing = self._traffic.sort(keys, slots, None if quantized is None else quantized[experts])
            if not counted:
                layer_step.count(slots, here)
                self._counts["corrections"] += self._foresight.asked(missing)
                layer_step.observe(layer, experts, counts)
            layer_step.hold(slots)
            pool.last_used[slots] = self._traffic.tick
            if not here.all():
                layer_step.send_for(keys[~here], self.policy.urgency(missing))
                keys, slots = keys[here], slots[here]
            self._traffic.put_off.update(dict.fromkeys(put_off))
            self._link.pump(changed=True)
            return keys, slots

    @bookkeeping
    def _computed(self, serial: int, keys: np.ndarray, slots: np.ndarray) -> None:
        """The computation that reads these experts has been dispatched: they may go."""
        with self._changed:
            self._guard.enter()
            self._guard.check(serial)
            self._link.pump(changed=False)
            self._layer_step.computed(keys, slots)
            self._link.pump(changed=True)

    @bookkeeping
    def _next_arrivals(self, serial: int) -> tuple[np.ndarray, np.ndarray]:
        """Waits until at least one needed expert has arrived; returns (keys, slots) of all that have, ascending."""
        with self._changed:
            self._guard.check(serial)
            while not self._traffic.here:
                self._link.wait()
                self._guard.check(serial)
            return self._layer_step.take_arrivals()

    def stats(self) -> dict[str, Any]:
        """Counts, bytes and seconds since `reset_stats`, by the row keys of DESIGN section 5, and a few more:
        urgent_transfers, background_transfers, evictions, wasted_prefetches, disk_reads and disk_bytes (experts that
        were not in host memory), link_seconds (the link occupied),
        peak_slot_bytes, layer_steps, steps.
        """
        with self._changed:
            counts = dict(self._counts)
            return {
                "policy": self.policy.name,
                "slots": self.num_slots,
                "expert_bytes": self.store.expert_bytes,
                "link": str(self._link.spec),
                "clock": "virtual" if self.clock.virtual else "real",
                **counts,
                "hit_rate": self._counts.hit_rate,
                "wall_seconds": self.clock.elapsed(),
                **{f"{kind}_seconds": seconds for kind, seconds in self.clock.totals.items()},
                "link_seconds": self._link.busy_seconds - self._link_seconds_before,
                "peak_slot_bytes": self.pool.peak_bytes,
            }

    def reset_stats(self) -> None:
        """Starts all counts, the clock's totals and the peak anew; the cache stays as it is, and what it decides."""
        with self._changed:
            self._guard.enter()
            self._counts.reset()
            self._balance.rebase(self.clock.totals["stall"])
            self._link_seconds_before = self._link.busy_seconds
            self.pool.reset_peak()
            self.clock.reset_totals()

    def close(self) -> None:
        """Ends the link and frees the slots' device memory. Any thread may call it, also twice: a call that waits in
        another thread ends with RuntimeError.
        """
        self._link.close()
        with self._changed:
            self._guard.closed = True
            self.pool.delete()

    def __enter__(self) -> "ExpertCacheEngine":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
