"""The link from host to device: what it is said to do, and its virtual form. (DESIGN section 7; worker.py is
the real one.)

A link carries one transfer after another, each for bytes / bandwidth, and an expert arrives a latency after
its last byte; a short window bounds how many are under way, since none can be recalled. It *pulls*: whenever
it is free it asks the engine for the next transfer, which is when a victim is chosen, so that nothing waits
in a queue behind which a correction would stand. Kinds: `direct` (whatever the hardware does) and `emulated`
(no sooner than a stated link).
"""

import collections
import dataclasses
import re
from collections.abc import Sequence
from typing import Any, Protocol

from expertflow_jax.errors import InputError
from expertflow_jax.offload.clock import Clock

_NEVER = float("inf")

# Host to device, achievable rather than nominal: PCIe 4.0 and 5.0 with 16 lanes and pinned memory, and the
# coherent link of a Grace-Hopper module.
PROFILES = {"pcie4x16": (25.0, 10.0), "pcie5x16": (50.0, 10.0), "nvlink-c2c": (350.0, 5.0)}


@dataclasses.dataclass(frozen=True)
class LinkSpec:
    """What a link is said to do. `gigabytes_per_second` is None for `direct`; a gigabyte is 1e9 bytes."""

    gigabytes_per_second: float | None = None
    latency_us: float = 0.0
    profile: str = ""

    @staticmethod
    def parse(text: "str | LinkSpec") -> "LinkSpec":
        """Reads "direct", "emulated(25,10)" (GB/s, microseconds) or a profile's name.

        Raises:
          InputError: anything else.
        """
        if isinstance(text, LinkSpec):
            return text
        plain = re.sub(r"\s|gigabytes_per_second=|latency_us=", "", text)
        if plain == "direct":
            return LinkSpec()
        if plain in PROFILES:
            return LinkSpec(*PROFILES[plain], profile=plain)
        if found := re.fullmatch(r"emulated\(([^,()]+)(?:,([^,()]+))?\)", plain):
            try:
                bandwidth, latency = float(found[1]), float(found[2] or 0)
            except ValueError:
                bandwidth = latency = -1.0
            if 0 < bandwidth < float("inf") and 0 <= latency < float("inf"):
                return LinkSpec(bandwidth, latency)
        raise InputError(
            f"link {text!r}: use direct, emulated(GIGABYTES_PER_SECOND,LATENCY_US) as in emulated(25,10), "
            f"or one of {', '.join(PROFILES)}"
        )

    @property
    def emulated(self) -> bool:
        return self.gigabytes_per_second is not None

    @property
    def latency_seconds(self) -> float:
        return self.latency_us * 1e-6

    def seconds_on_link(self, nbytes: int) -> float:
        """How long the link is occupied by `nbytes`; 0 for `direct`, whose speed is not stated."""
        return 0.0 if self.gigabytes_per_second is None else nbytes / (self.gigabytes_per_second * 1e9)

    def __str__(self) -> str:
        if not self.emulated:
            return "direct"
        return self.profile or f"emulated({self.gigabytes_per_second:g},{self.latency_us:g})"


@dataclasses.dataclass(slots=True)
class Transfer:
    """One expert on its way into a reserved slot."""

    key: int
    slot: int
    generation: int
    kind: str  # "urgent" (compute waits), "prefetch" (forecast), "background" (after a lossy miss)
    quantized: bool = False  # the quantised copy travels
    disk_seconds: float = 0.0  # read from disk before it may travel, on the virtual clock
    start: float = 0.0
    end: float = 0.0
    buffer: Any = None


class TransferSource(Protocol):
    """The engine's side of the link."""

    def has_work(self) -> bool:
        """Whether `next_transfer` may have something, now that something changed."""

    def next_transfer(self) -> Transfer | None:
        """Reserves a slot for what should travel now, or None if nothing should."""

    def load(self, transfers: Sequence[Transfer]) -> int:
        """Starts their copies together; returns their bytes."""

    def arrived(self, transfer: Transfer) -> None:
        """The expert is usable from now on."""


class TransferLink(Protocol):
    """What the engine asks of a link. The engine holds its own lock when it calls these."""

    spec: LinkSpec
    busy_seconds: float

    def attach(self, source: TransferSource) -> None:
        """Names the engine that transfers are pulled from. Called once."""

    def pump(self, changed: bool) -> None:
        """Lets everything happen that is due by now.

        The engine calls it with False before it changes anything, and with True after it changed something
        that may let a transfer start.
        """

    def wait(self) -> None:
        """Blocks until something has arrived since the last pump; books the time as a stall."""

    def drain(self) -> None:
        """Blocks until nothing is under way."""

    def close(self) -> None:
        """Ends the link; nothing is under way afterwards."""


class VirtualLink:
    """Arrivals computed from bytes and bandwidth on a virtual clock: a deterministic event simulation.

    Events happen at their own times, in order, whenever the engine looks (`pump`): arrivals first, then a new
    start if the link is free and the window open. The engine's state changes only in its calls, so looking
    late changes nothing. `direct` takes no time here.
    """

    def __init__(self, spec: LinkSpec, clock: Clock, window: int = 2):
        self.spec = spec
        self.busy_seconds = 0.0
        self._clock = clock
        self._window = window
        self._under_way: collections.deque[Transfer] = collections.deque()
        self._free_at = 0.0
        self._idle = False  # asked since the last change, and nothing should travel
        self._looked = clock.now()

    def attach(self, source: TransferSource) -> None:
        self._source = source

    def pump(self, changed: bool) -> None:
        now = self._clock.now()
        under_way = self._under_way
        if changed:
            self._idle = False
        while under_way or not self._idle:
            arrival = under_way[0].end if under_way else _NEVER
            start = self._free_at if self._free_at > self._looked else self._looked
            if arrival > start and len(under_way) >= self._window:
                start = arrival
            if arrival <= now and (arrival <= start or self._idle):
                if arrival > self._looked:
                    self._looked = arrival
                self._source.arrived(under_way.popleft())
                self._idle = False
            elif start <= now and not self._idle:
                self._looked = start
                transfer = self._source.next_transfer()
                if transfer is None:
                    self._idle = True
                else:
                    self._start(transfer, start)
            else:
                break
        self._looked = now

    def _start(self, transfer: Transfer, start: float) -> None:
        occupied = self._source.load([transfer])
        seconds = self.spec.seconds_on_link(occupied)
        self._free_at = start + transfer.disk_seconds + seconds
        self.busy_seconds += seconds
        transfer.start, transfer.end = start, self._free_at + self.spec.latency_seconds
        self._under_way.append(transfer)

    def wait(self) -> None:
        if not self._under_way:
            raise AssertionError("compute waits for an expert, but nothing travels and no slot may be evicted")
        self._clock.wait_until(self._under_way[0].end, "stall")
        self.pump(changed=False)

    def drain(self) -> None:
        while self._under_way:
            self._source.arrived(self._under_way.popleft())
        self._free_at = min(self._free_at, self._clock.now())

    def close(self) -> None:
        self.drain()
