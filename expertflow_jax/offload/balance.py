"""How starved for experts the computation is: measured while the engine runs."""


class Balance:
    """Smoothed over steps, from sums that only grow but where `rebase` says that they began anew.

    Attributes:
      working: the share of the time in which computation did not wait for experts; `unknown` before the first step
        has ended.
      layer_seconds: of computation per layer-step; 0 before the first step has ended.
    """

    def __init__(self, memory: float, unknown: float) -> None:
        """
        Args:
          memory: weight of the latest step.
          unknown: share assumed before anything is known.
        """
        self._memory, self._unknown = memory, unknown
        self.forget()

    def forget(self) -> None:
        """Starts anew."""
        self.working, self.layer_seconds = self._unknown, 0.0
        self._measured = False
        self._before: tuple[float, float, int] | None = None

    def rebase(self, stalled: float) -> None:
        """The sum of stalls has been set from `stalled` to zero."""
        if self._before is not None:
            now, before, layer_steps = self._before
            self._before = now, before - stalled, layer_steps

    def step(self, now: float, stalled: float, layer_steps: int) -> None:
        """A step begins: seconds on the clock, stalled so far, layer-steps so far."""
        if self._before is not None:
            elapsed, stall, layers = (a - b for a, b in zip((now, stalled, layer_steps), self._before, strict=True))
            if elapsed > 0 and stall >= 0 and layers > 0:
                weight = self._memory if self._measured else 1.0
                self.working += weight * (max(0.0, 1 - stall / elapsed) - self.working)
                self.layer_seconds += weight * (max(0.0, elapsed - stall) / layers - self.layer_seconds)
                self._measured = True
        self._before = now, stalled, layer_steps
