"""What the host asks of the device inside a block, as the runtime's own profiler has it: counts, not times."""

import collections
import contextlib
import dataclasses
import tempfile
from collections.abc import Iterator
from pathlib import Path

import jax

MARK = "the thread that computes"


@dataclasses.dataclass
class DeviceCalls:
    """Of the thread that entered the block, filled in as the block ends.

    Attributes:
      by_stage: calls of jitted functions, by the function's name.
      uploads: arrays that went from NumPy to the device, as arguments of a call or by `device_put`.
      puts: calls of `device_put`.
      reads: arrays whose numbers the host asked for.
    """

    by_stage: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    uploads: int = 0
    puts: int = 0
    reads: int = 0

    @property
    def dispatches(self) -> int:
        """Calls of jitted functions."""
        return self.by_stage.total()

    def fill(self, events: collections.Counter[str]) -> None:
        """Takes the counts of the profiler's events by name."""
        for name, count in events.items():
            if name.startswith("PjitFunction("):
                self.by_stage[name.removeprefix("PjitFunction(").removesuffix(")")] += count // 2  # enters twice
        executed = events["CommonPjRtLoadedExecutable::ExecuteHelperOnSingleDevice"]
        assert executed == self.dispatches, "the profiler names its events otherwise than it did"
        self.uploads = events["DevicePut"] + events["DevicePutWithSharding"]
        self.puts = events["shard_args"]
        self.reads = events["np.asarray(jax.Array)"]


@contextlib.contextmanager
def device_calls() -> Iterator[DeviceCalls]:
    """Counts what runs inside; all that is called there has to be compiled already."""
    calls, options = DeviceCalls(), jax.profiler.ProfileOptions()
    options.python_tracer_level, options.host_tracer_level = 0, 3
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder, profiler_options=options), jax.profiler.TraceAnnotation(MARK):
            yield calls
        [path] = Path(folder).rglob("*.xplane.pb")
        profile = jax.profiler.ProfileData.from_file(str(path))
    for plane in profile.planes:
        for line in plane.lines:
            events = collections.Counter(event.name for event in line.events)
            if MARK in events:
                calls.fill(events)
