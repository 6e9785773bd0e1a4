"""How starved for experts the computation is: measured while the engine runs."""

MEMORY = 0.3  # weight of the latest step


class Balance:
    """The share of the time in which computation did not wait for experts, from sums that only grow.

    Attributes:
      working: that share, smoothed over steps; 1 before the first one has ended.
    """

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Starts anew."""
        self.working = 1.0
        self._measured = False
        self._before: tuple[float, float] | None = None

    def step(self, now: float, stalled: float) -> None:
        """A step begins: seconds on the clock, and stalled so far. Sums reset since the last step are left out."""
        if self._before is not None:
            elapsed, stall = now - self._before[0], stalled - self._before[1]
            if elapsed > 0 and stall >= 0:
                share = max(0.0, 1 - stall / elapsed)
                self.working = self.working + MEMORY * (share - self.working) if self._measured else share
                self._measured = True
        self._before = now, stalled
