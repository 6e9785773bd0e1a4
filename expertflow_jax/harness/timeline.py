"""What happened when: overlap of transfers and compute, and a trace that Perfetto (ui.perfetto.dev) opens.

Events are (lane, name, start, end) in seconds, as clocks collect them; lanes are compute, stall, predictor and link.
"""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from expertflow_jax.harness.figures import write_figure
from expertflow_jax.offload.clock import Event

LANES = ("compute", "predictor", "stall", "link")
_COLOURS = {"correction": "terrible", "urgent": "bad", "prefetch": "good", "background": "grey"}


def union(intervals: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    """The same points in time as disjoint intervals, ascending."""
    merged: list[list[float]] = []
    for start, end in sorted(intervals):
        if merged and start <= merged[-1][1]:
            merged[-1][1] = max(merged[-1][1], end)
        elif end > start:
            merged.append([start, end])
    return [(start, end) for start, end in merged]


def length(intervals: Iterable[tuple[float, float]]) -> float:
    """Total length of disjoint intervals."""
    return sum(end - start for start, end in intervals)


def common(first: Sequence[tuple[float, float]], second: Sequence[tuple[float, float]]) -> float:
    """Length of what two lists of disjoint ascending intervals have in common."""
    total, i, j = 0.0, 0, 0
    while i < len(first) and j < len(second):
        total += max(0.0, min(first[i][1], second[j][1]) - max(first[i][0], second[j][0]))
        if first[i][1] <= second[j][1]:
            i += 1
        else:
            j += 1
    return total


def of_lane(events: Iterable[Event], *lanes: str) -> list[tuple[float, float]]:
    """When any of these lanes was busy."""
    return union((start, end) for lane, _, start, end in events if lane in lanes)


def overlap(events: Sequence[Event]) -> float | None:
    """Share of the time that transfers were under way in which compute did not wait for them; None if none was."""
    busy = of_lane(events, "link")
    if not busy:
        return None
    return 1 - common(busy, of_lane(events, "stall")) / length(busy)


def clipped(events: Iterable[Event], start: float, end: float) -> list[Event]:
    """Events within a span, those across its edges cut."""
    return [
        (lane, name, max(begin, start), min(stop, end))
        for lane, name, begin, stop in events
        if stop > start and begin < end
    ]


def trace_json(events: Sequence[Event], title: str) -> str:
    """Chrome trace event format (JSON object form), one thread per lane, times in microseconds from the beginning."""
    origin = min((start for _, _, start, _ in events), default=0.0)
    entries: list[dict] = [{"ph": "M", "pid": 1, "tid": 0, "name": "process_name", "args": {"name": title}}]
    for tid, lane in enumerate(LANES, start=1):
        entries.append({"ph": "M", "pid": 1, "tid": tid, "name": "thread_name", "args": {"name": lane}})
        entries.append({"ph": "M", "pid": 1, "tid": tid, "name": "thread_sort_index", "args": {"sort_index": tid}})
    for lane, name, start, end in sorted(events, key=lambda event: event[2]):
        entry = {"ph": "X", "pid": 1, "tid": LANES.index(lane) + 1, "cat": lane, "name": name}
        entry |= {"ts": round((start - origin) * 1e6, 3), "dur": round((end - start) * 1e6, 3)}
        kind = name.split(" ", 1)[0]
        if lane == "link" and kind in _COLOURS:
            entry |= {"cname": _COLOURS[kind], "args": {"kind": kind}}
        entries.append(entry)
    return json.dumps({"traceEvents": entries, "displayTimeUnit": "ms"})


def draw(events: Sequence[Event], path: Path, title: str, seconds: float | None = None) -> None:
    """A picture of the lanes; corrections in red. At most the first `seconds`."""
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    looks = {"compute": "#0072B2", "predictor": "#CC79A7", "stall": "#BBBBBB"}
    kinds = {"prefetch": "#009E73", "urgent": "#E69F00", "correction": "#D00000", "background": "#999999"}
    origin = min(start for _, _, start, _ in events)
    if seconds is not None:
        events = clipped(events, origin, origin + seconds)
    figure = Figure(figsize=(13, 2.9), layout="constrained")
    ax = figure.subplots()
    for lane, name, start, end in events:
        colour = kinds.get(name.split(" ", 1)[0], "#444444") if lane == "link" else looks.get(lane, "#444444")
        row = len(LANES) - 1 - LANES.index(lane)
        ax.broken_barh([((start - origin) * 1e3, max((end - start) * 1e3, 1e-3))], (row - 0.4, 0.8), color=colour, lw=0)
    ax.set(title=title, xlabel="milliseconds", yticks=np.arange(len(LANES)), yticklabels=LANES[::-1])
    handles = [Patch(color=colour, label=name) for name, colour in kinds.items() if name != "background"]
    figure.legend(handles=handles, loc="outside right upper", frameon=False, title="transfers")
    write_figure(figure, path)


def with_compute(events: Sequence[Event], start: float, end: float) -> list[Event]:
    """The same within a span, with a compute lane: whatever time the host neither stalled nor forecast."""
    inside = clipped(events, start, end)
    waiting = of_lane(inside, "stall", "predictor")
    edges = [start, *(moment for interval in waiting for moment in interval), end]
    gaps = zip(edges[::2], edges[1::2], strict=True)
    return inside + [("compute", "compute", begin, stop) for begin, stop in gaps if stop > begin]
