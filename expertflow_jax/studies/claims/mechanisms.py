"""What a system does, as numbers from the log of its events; 1 is wholly as claimed, unless it says otherwise.

Each function takes a `Run` and returns its measures by name; the config says how large each has to be.
Axes: H steps of the horizon, L MoE layers, E experts, S slots. A key is layer * E + expert.
"""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from expertflow_jax.offload.foresight import on_grid
from expertflow_jax.simulation.event_log import Ask, EventLog, Move
from expertflow_jax.simulation.replay import ReplayStep

Measures = dict[str, float]


@dataclasses.dataclass(frozen=True)
class Run:
    """A recorded run: its events, the steps that were replayed, L, and S."""

    log: EventLog
    steps: Sequence[ReplayStep]
    num_layers: int
    slots: int


def _share(marks: Sequence[bool]) -> float:
    return float(np.mean(marks)) if len(marks) else 0.0


def ring(run: Run) -> Measures:
    """SE-MoE: sections follow each other in the order of layers, each into the place of the one released, whole; and
    the next layer's is there or under way whenever a layer computes."""
    log, layers, experts = run.log, run.num_layers, run.log.num_experts
    sections = run.slots // experts
    turns = [sections + place // experts for place in range(len(log.moves))]
    in_order = [
        move.layer == turn % layers and move.evicted // experts == (turn - sections) % layers
        for move, turn in zip(log.moves, turns, strict=True)
    ]
    overlapped = []
    for ask in log.asks[: -sections - 1]:
        following = (ask.layer + 1) % layers
        under_way = any(m.layer == following and m.start < ask.end and m.end > ask.start for m in log.moves)
        there = all(following * experts + expert in ask.held for expert in range(experts))
        overlapped.append(under_way or there)
    everything = (len(log.asks) - sections - 1) * experts
    return {
        "in order": _share(in_order),
        "next section there or under way": _share(overlapped),
        "experts moved / all experts": min(1.0, len(log.moves) / everything),
    }


def lru_per_layer(run: Run) -> Measures:
    """Cache-MoE: an expert takes the slot of the one of its own layer that was used longest ago. Layers that ask for
    more experts than they have slots are left out of the second: what they have computed may go at once."""
    log, experts = run.log, run.log.num_experts
    share = run.slots // run.num_layers
    used: dict[int, int] = {}
    asked: set[int] = set()
    ask: Ask | None = None
    own_layer, oldest = [], []
    for event in log.events():
        if isinstance(event, Ask):
            ask, asked = event, {event.layer * experts + expert for expert in event.experts}
            used = used or dict.fromkeys(event.held, -1)
            used.update(dict.fromkeys(asked & used.keys(), event.turn))
            continue
        assert ask is not None
        own_layer.append(event.evicted // experts == event.layer)
        if len(asked) <= share:
            rivals = [key for key in used if key // experts == event.layer and key not in asked]
            oldest.append(event.evicted == min(rivals, key=lambda key: (used[key], key)))
        del used[event.evicted]
        used[log.key(event)] = ask.turn
    return {"victim of the same layer": _share(own_layer), "its oldest": _share(oldest)}


class _Chances:
    """The forecast in force at a moment of a run."""

    def __init__(self, run: Run):
        self._run = run
        self._begins = np.array(run.log.begins)
        self._asks = np.array([ask.turn for ask in run.log.asks])

    def at(self, turn: int) -> np.ndarray:
        """P(used from now on within the horizon) of every expert: [L * E]."""
        step = max(0, int(np.searchsorted(self._begins, turn, "right")) - 1)
        asked = int(np.searchsorted(self._asks, turn)) - step * self._run.num_layers  # layers of this step so far
        horizon = self._run.steps[step].horizon
        assert horizon is not None
        unused_HLE = 1 - on_grid(horizon)
        unused_HLE[0, : max(0, asked)] = 1
        return 1 - unused_HLE.prod(axis=0).reshape(-1)


def path(run: Run) -> Measures:
    """ExpertFlow: what travels unasked is on the predicted path, and some does in every step (transfers per step)."""
    chances = _Chances(run)
    ahead = [move for move in run.log.moves if move.kind == "prefetch"]
    return {
        "unasked transfers that the forecast names": _share([chances.at(m.turn)[run.log.key(m)] > 0.25 for m in ahead]),
        "unasked transfers per step": len(ahead) / len(run.steps),
    }


def correction(run: Run) -> Measures:
    """ExpertFlow: what was mispredicted travels before any prefetch that waits, into the slot of another expert."""
    log, first, swapped = run.log, [], []
    for ask, following in zip(log.asks, [*log.asks[1:], None], strict=True):
        since = [m for m in log.moves if m.turn > ask.turn and (following is None or m.turn < following.turn)]
        for place, move in enumerate(since):
            if move.kind == "correction":
                first.append(all(before.kind in ("correction", "urgent") for before in since[:place]))
                swapped.append(move.evicted >= 0)
    return {"corrections ahead of all prefetches": _share(first), "corrections that swap": _share(swapped)}


def workflow(run: Run) -> Measures:
    """ExpertFlow's cache: the forecast orders the unasked transfers, which come before their layer asks, and chooses
    who leaves: one less likely to be used than most of those that are there."""
    log, chances = run.log, _Chances(run)
    held: set[int] = set(log.asks[0].held)
    below: list[bool] = []
    for event in log.events():
        if isinstance(event, Ask):
            held = set(event.held)
            continue
        if event.evicted >= 0 and event.evicted in held:
            chance = chances.at(event.turn)
            below.append(bool(chance[event.evicted] <= np.median(chance[sorted(held)])))
        held = held - {event.evicted} | {log.key(event)}
    ahead = [move for move in log.moves if move.kind == "prefetch"]
    return {
        "steps forecast before they begin": _share([step.horizon is not None for step in run.steps]),
        "unasked transfers there when their layer asks": _share([_in_time(log, move) for move in ahead]),
        "victims less likely than most": _share(below),
    }


def _in_time(log: EventLog, move: Move) -> bool:
    """Whether the expert had arrived, and was still there, when its layer asked next."""
    asks = (ask for ask in log.asks if ask.turn > move.turn and ask.layer == move.layer)
    following = next(asks, None)
    return following is not None and move.end <= following.start and log.key(move) in following.held


MECHANISMS: dict[str, Callable[[Run], Measures]] = {
    function.__name__: function for function in (ring, lru_per_layer, path, correction, workflow)
}
