"""Time for the offload engine: virtual (decided by stated costs, reproducible bit for bit) or real. (DESIGN
section 7.)

Both keep totals of seconds by kind and, on request, a timeline of (lane, name, start, end) for a trace
viewer.
Kinds: `compute` (stages on the device), `stall` (compute waits for experts to arrive), `predictor` (the
forecast's own cost), `host` (bookkeeping). Under the real clock compute runs asynchronously, so a stall is
the time that the host waited: an upper bound on what the device waited.
"""

import contextlib
import functools
import time
from collections.abc import Callable, Iterator
from typing import Any, Protocol

KINDS = ("compute", "stall", "predictor", "host")

Event = tuple[str, str, float, float]


class Clock(Protocol):
    """What the engine, the session and the forecaster ask of a clock. All times are in seconds.

    Attributes:
      virtual: whether time passes only by `spend` and `wait_until`.
      totals: seconds by kind since the last `reset_totals`.
      timeline: set it to a list to collect events (lane, name, start, end); None collects nothing.
    """

    virtual: bool
    totals: dict[str, float]
    timeline: list[Event] | None

    def now(self) -> float:
        """Seconds since an arbitrary origin; never decreases."""

    def spend(self, seconds: float, kind: str, name: str = "") -> None:
        """Books `seconds` of `kind` that end now; the virtual clock advances by them first."""

    def wait_until(self, moment: float, kind: str = "stall", name: str = "") -> None:
        """Lets time pass until `moment`, booked as `kind`. Returns at once if it has passed."""

    def measure(self, kind: str, name: str = "") -> contextlib.AbstractContextManager[None]:
        """Books the time that passes inside the `with` block as `kind`."""

    def elapsed(self) -> float:
        """Seconds since the last `reset_totals`."""

    def reset_totals(self) -> None:
        """Starts the totals and `elapsed` anew; time goes on."""


class _Totals:
    """Bookkeeping that both clocks share."""

    def __init__(self) -> None:
        self.timeline: list[Event] | None = None
        self.reset_totals()

    def now(self) -> float:
        raise AttributeError("a clock defines now()")

    def elapsed(self) -> float:
        return self.now() - self._origin

    def reset_totals(self) -> None:
        self.totals = dict.fromkeys(KINDS, 0.0)
        self._origin = self.now()

    def _book(self, kind: str, name: str, start: float, end: float) -> None:
        self.totals[kind] += end - start
        if self.timeline is not None:
            self.timeline.append((kind, name or kind, start, end))

    @contextlib.contextmanager
    def measure(self, kind: str, name: str = "") -> Iterator[None]:
        start = self.now()
        try:
            yield
        finally:
            self._book(kind, name, start, self.now())


class VirtualClock(_Totals):
    """Time that passes only when someone says so: the same inputs give the same arrivals, on any machine."""

    virtual = True

    def __init__(self) -> None:
        self._now = 0.0
        super().__init__()

    def now(self) -> float:
        return self._now

    def spend(self, seconds: float, kind: str, name: str = "") -> None:
        self.wait_until(self._now + seconds, kind, name)

    def wait_until(self, moment: float, kind: str = "stall", name: str = "") -> None:
        start = self._now
        if moment > start:
            self._now = moment
            self._book(kind, name, start, moment)


class RealClock(_Totals):
    """The machine's monotonic clock. `spend` books what a caller measured; it does not sleep."""

    virtual = False

    def now(self) -> float:
        return time.perf_counter()

    def spend(self, seconds: float, kind: str, name: str = "") -> None:
        end = self.now()
        self._book(kind, name, end - seconds, end)

    def wait_until(self, moment: float, kind: str = "stall", name: str = "") -> None:
        start = self.now()
        if moment > start:
            time.sleep(moment - start)
            self._book(kind, name, start, self.now())


def bookkeeping[Method: Callable[..., Any]](method: Method) -> Method:
    """Under a real clock, books the time inside a method of something with a `clock` as `host`, less its stalls."""

    @functools.wraps(method)
    def timed(self: Any, *args: Any) -> Any:
        clock = self.clock
        if clock.virtual:
            return method(self, *args)
        begin, stalled = clock.now(), clock.totals["stall"]
        try:
            return method(self, *args)
        finally:
            clock.totals["host"] += clock.now() - begin - (clock.totals["stall"] - stalled)

    return timed  # type: ignore[return-value]
