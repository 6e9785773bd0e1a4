"""How starved for experts the computation is: measured while the engine runs."""

from expertflow_jax.offload.clock import Clock
from expertflow_jax.offload.link import TransferLink
from expertflow_jax.offload.policies.tuning import Tuning


class Balance:
    """Smoothed over steps, from sums that only grow but where `rebase` says that they began anew.

    Attributes:
      working: the share of the time in which computation did not wait for experts; `balance_unknown` before the first
        step has ended.
      layer_seconds: of computation per layer-step; 0 before the first step has ended.
    """

    def __init__(self, tuning: Tuning, link: TransferLink, expert_bytes: int) -> None:
        """
        Args:
          tuning: `balance_memory` and `balance_unknown` of it.
          link: that experts of `expert_bytes` travel on.
        """
        self._memory, self._unknown = tuning.balance_memory, tuning.balance_unknown
        self._link, self._expert_bytes = link, expert_bytes
        self.forget()

    def forget(self) -> None:
        """Starts anew."""
        self.working, self.layer_seconds = self._unknown, 0.0
        self._measured = False
        self._before: tuple[float, float, int] | None = None
        self._busy_before = self._link.busy_seconds

    def rebase(self, stalled: float) -> None:
        """The sum of stalls has been set from `stalled` to zero."""
        if self._before is not None:
            now, before, layer_steps = self._before
            self._before = now, before - stalled, layer_steps

    def transfers_per_layer(self, transfers: int) -> float:
        """Experts that travel while one layer-step is computed; infinite where that takes them no time.

        Args:
          transfers: that have started since it began anew.
        """
        if self._link.spec.emulated:
            seconds = self._link.spec.seconds_on_link(self._expert_bytes)
        else:
            seconds = (self._link.busy_seconds - self._busy_before) / max(transfers, 1)
        return self.layer_seconds / seconds if seconds > 0 else float("inf")

    def step(self, clock: Clock, layer_steps: int) -> None:
        """A step begins, after so many layer-steps."""
        now, stalled = clock.now(), clock.totals["stall"]
        if self._before is not None:
            elapsed, stall, layers = (a - b for a, b in zip((now, stalled, layer_steps), self._before, strict=True))
            if elapsed > 0 and stall >= 0 and layers > 0:
                weight = self._memory if self._measured else 1.0
                self.working += weight * (max(0.0, 1 - stall / elapsed) - self.working)
                self.layer_seconds += weight * (max(0.0, elapsed - stall) / layers - self.layer_seconds)
                self._measured = True
        self._before = now, stalled, layer_steps
