"""What an engine did, event by event: who asked when, what travelled when and what it displaced, how long layers took.

Mechanisms are judged by this log, not by a policy's own word. Axes: E experts. A key is layer * E + expert.
"""

import contextlib
import dataclasses
from collections.abc import Iterable, Iterator

import numpy as np

from expertflow_jax.offload.engine import ExpertCacheEngine
from expertflow_jax.simulation.costs import ComputeCosts
from expertflow_jax.simulation.replay import ReplayStep, replay_step


@dataclasses.dataclass(frozen=True)
class Ask:
    """A layer-step asked for experts.

    Attributes:
      turn: its place among all asks and moves.
      held: keys that had a slot, or were on their way into one, at that moment.
      start, end: seconds, from the moment it asked until its last expert was computed.
    """

    turn: int
    layer: int
    experts: tuple[int, ...]
    held: frozenset[int]
    start: float
    end: float = float("nan")


@dataclasses.dataclass(frozen=True)
class Move:
    """A transfer.

    Attributes:
      turn: see `Ask`; that of the moment when its slot was given to it.
      kind: "urgent", "correction", "prefetch" or "background".
      evicted: key that lost the slot, -1 if it was empty.
      start, end: seconds, from its first byte until the expert was usable.
    """

    turn: int
    kind: str
    layer: int
    expert: int
    evicted: int
    start: float
    end: float


@dataclasses.dataclass
class EventLog:
    """All asks and moves in their order; moves that had not arrived at the end are left out.

    Attributes:
      begins: turns at which steps began: what follows has a turn of at least that.
    """

    num_experts: int
    begins: list[int] = dataclasses.field(default_factory=list)
    asks: list[Ask] = dataclasses.field(default_factory=list)
    moves: list[Move] = dataclasses.field(default_factory=list)

    def key(self, move: Move) -> int:
        """Of the expert that moved."""
        return move.layer * self.num_experts + move.expert

    def events(self) -> list[Ask | Move]:
        """Asks and moves in the order of their turns."""
        both: list[Ask | Move] = [*self.asks, *self.moves]
        return sorted(both, key=lambda event: event.turn)

    def between(self, first: Ask, last: Ask) -> list[Move]:
        """Moves whose slots were given after `first` had asked and before `last` did."""
        return [move for move in self.moves if first.turn < move.turn < last.turn]


@contextlib.contextmanager
def listening(engine: ExpertCacheEngine) -> Iterator[EventLog]:
    """Hears what the engine does on its virtual clock inside the `with` block, behind which the log has its moves; the
    engine serves nobody else afterwards."""
    log, clock, policy = EventLog(engine.store.num_experts), engine.clock, engine.policy
    reserved: list[tuple[int, int, int]] = []  # turn, key and evicted key of every move
    clock.timeline = []
    begin_step, observe, moved = policy.begin_step, policy.observe, policy.moved

    def heard_step(horizon: np.ndarray | None) -> None:
        log.begins.append(len(log.asks) + len(reserved))
        begin_step(horizon)

    def heard_ask(layer: int, counts: np.ndarray) -> None:
        held = frozenset(np.flatnonzero(engine.pool.slot_of >= 0).tolist())
        turn = len(log.asks) + len(reserved)
        log.asks.append(Ask(turn, layer, tuple(np.flatnonzero(counts).tolist()), held, clock.now()))
        observe(layer, counts)

    def heard_move(key: int, evicted: int) -> None:
        reserved.append((len(log.asks) + len(reserved), key, evicted))
        moved(key, evicted)

    policy.begin_step, policy.observe, policy.moved = heard_step, heard_ask, heard_move  # type: ignore[method-assign]
    yield log
    arrivals = [(name.split(" ", 1)[0], start, end) for lane, name, start, end in clock.timeline if lane == "link"]
    for (turn, key, evicted), (kind, start, end) in zip(reserved, arrivals, strict=False):
        log.moves.append(Move(turn, kind, *divmod(key, log.num_experts), evicted, start, end))


def record(engine: ExpertCacheEngine, steps: Iterable[ReplayStep], costs: ComputeCosts) -> EventLog:
    """Replays the steps on the engine's virtual clock and listens."""
    with listening(engine) as log:

        def computed(layer: int, _: int) -> None:
            log.asks[-1] = dataclasses.replace(log.asks[-1], end=engine.clock.now())

        for step in steps:
            replay_step(engine, step, costs, on_layer=computed)
    return log
