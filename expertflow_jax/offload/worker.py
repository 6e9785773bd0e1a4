"""The link under the real clock: a thread that pulls transfers, copies, and reports arrivals. (DESIGN section 7.)

A thread of its own, since copies dispatched by the thread that computes queue behind compute (measured: 11 % of
a transfer hidden against 92 %). `direct` copies as fast as the hardware does. `emulated` lets an expert arrive
no sooner than a link of the stated latency and bandwidth that carries one expert after another would deliver
it, while the device computes on; a copy that takes longer than that arrives when it has ended.
"""

import collections
import threading
import weakref

import jax

from expertflow_jax.errors import InputError
from expertflow_jax.offload.clock import Clock
from expertflow_jax.offload.link import LinkSpec, Transfer, TransferSource

# A sleeping thread wakes a little late. A link would have gone on at once, so a start may be dated back, by this much
# at most: a machine that stalls for longer makes the link slower, never faster than stated.
WAKE_UP_SECONDS = 500e-6
POLL_SECONDS = 100e-6  # between two looks at whether an expert has arrived, while another could start


class RealLink:
    """Moves experts on a thread of its own. See `TransferLink` for the methods; all but `close` and `end` raise
    RuntimeError once it is closed, also in a thread that waits then.

    The thread holds its engine weakly, so that one that nobody closes can be collected. The state below is guarded by
    the engine's lock, except that only the thread itself looks at `_free_at` and `_last_end`.
    """

    def __init__(self, spec: LinkSpec, clock: Clock, condition: threading.Condition, window: int | None = None):
        """
        Args:
          spec: direct or emulated.
          clock: the real one.
          condition: the engine's, around its lock.
          window: transfers under way at most.
        """
        self.spec = spec
        self.busy_seconds = 0.0
        self._clock = clock
        self._condition = condition
        self._window = window or 2
        self._under_way: collections.deque[Transfer] = collections.deque()
        self._arrivals = 0
        self._idle = False  # asked since the last change, and nothing should travel
        self._rested = True  # idle since the last start, so that the next one begins when it is pulled
        self._paused = False
        self._closing = False
        self._failure: BaseException | None = None
        self._free_at = self._last_end = 0.0
        self._thread = threading.Thread(target=self._run, name="expert-link", daemon=True)

    def attach(self, source: TransferSource) -> None:
        self._source_reference = weakref.ref(source)
        self._thread.start()

    @property
    def _source(self) -> TransferSource:
        source = self._source_reference()
        if source is None:
            raise ReferenceError("the engine of this link has been collected")
        return source

    def pump(self, changed: bool) -> None:
        self._raise_failure()
        # The thread is woken only if it sleeps for want of work and there may be some: waking it costs the computing
        # thread the interpreter's lock, 0.4 ms on two cores, several times per layer-step.
        if changed and (self._idle or not self._under_way) and self._source.has_work():
            self._idle = False
            self._condition.notify_all()

    def wait(self) -> None:
        before = self._arrivals
        with self._clock.measure("stall"):
            while self._arrivals == before:
                self._raise_failure()
                if self._idle and not self._under_way:
                    raise AssertionError("compute waits for an expert, but nothing travels and no slot may be evicted")
                self._condition.wait()

    def drain(self) -> None:
        self._paused = True
        try:
            while self._under_way:
                self._raise_failure()
                self._condition.wait()
        finally:
            self._paused = False
        self._raise_failure()

    def end(self) -> None:
        """Lets the thread end once nothing is under way, without waiting for it."""
        with self._condition:
            self._closing = True
            self._condition.notify_all()

    def close(self) -> None:
        self.end()
        if self._thread.ident is not None:
            self._thread.join()

    def _raise_failure(self) -> None:
        if self._closing:
            raise RuntimeError("the engine is closed; make a new one")
        if self._failure is not None:
            kind = InputError if isinstance(self._failure, InputError) else RuntimeError
            raise kind(f"moving experts to the device failed: {self._failure}") from self._failure

    def _run(self) -> None:
        try:
            while (task := self._next_task()) is not None:
                transfers, starts = task
                if starts:
                    self._start(transfers)
                else:
                    self._finish(transfers[0])
        except ReferenceError:
            pass  # nobody is left to report to
        except BaseException as failure:
            with self._condition:
                self._failure = failure
                self._under_way.clear()
                self._condition.notify_all()

    def _next_task(self) -> tuple[list[Transfer], bool] | None:
        """Waits for something to do: transfers that start now (True), or one that is due to arrive (False)."""
        with self._condition:
            while True:
                if transfers := self._pull():
                    return transfers, True
                if not self._under_way:
                    if self._closing:
                        return None
                    self._condition.wait()
                    continue
                first, now = self._under_way[0], self._clock.now()
                if first.end > now:  # as the emulated link says
                    event = min(first.end, self._free_at) if self._may_start() else first.end
                    self._condition.wait(max(event - now, 0.0))
                elif self._full or self.spec.emulated or _is_ready(first):
                    return [first], False
                else:  # an urgent one may yet come, and would start at once
                    self._condition.wait(POLL_SECONDS)

    @property
    def _full(self) -> bool:
        return len(self._under_way) >= self._window

    def _may_start(self) -> bool:
        return not (self._full or self._idle or self._paused or self._closing)

    def _pull(self) -> list[Transfer]:
        """The next transfers, if any may start now: all for which the window has room, but one at a time on an emulated
        link, which is free once the last byte has left."""
        now, transfers = self._clock.now(), list[Transfer]()
        while now >= self._free_at and self._may_start() and not (transfers and self.spec.emulated):
            transfer = self._source.next_transfer()
            if transfer is None:
                self._idle = self._rested = True
                self._condition.notify_all()
                break
            transfer.start = now if self._rested else max(self._free_at, now - WAKE_UP_SECONDS)
            self._rested = False
            self._under_way.append(transfer)
            transfers.append(transfer)
        return transfers

    def _start(self, transfers: list[Transfer]) -> None:
        seconds = self.spec.seconds_on_link(self._source.load(transfers))
        self._free_at = transfers[0].start + seconds
        if self.spec.emulated:
            self.busy_seconds += seconds
            transfers[0].end = self._free_at + self.spec.latency_seconds

    def _finish(self, transfer: Transfer) -> None:
        if transfer.buffer is not None:
            jax.block_until_ready(transfer.buffer)
        now = self._clock.now()
        if not self.spec.emulated:
            self.busy_seconds += now - max(transfer.start, self._last_end)
        self._last_end = transfer.end = now
        with self._condition:
            self._under_way.popleft()
            self._source.arrived(transfer)
            self._arrivals += 1
            self._idle = False
            self._condition.notify_all()


def _is_ready(transfer: Transfer) -> bool:
    return transfer.buffer is None or all(part.is_ready() for part in transfer.buffer)
