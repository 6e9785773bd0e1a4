"""Blocks of batches: so many run at once, each at a step of its own, and one that has ended makes room for the next.
(DESIGN section 6b; FlexGen's block schedule, 2303.06865, with members that come and go.)
"""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol

import jax

from expertflow_jax.inference.forecasting import Forecaster, Queue
from expertflow_jax.inference.members import Member
from expertflow_jax.inference.session import InferenceSession


class Run[Result](Protocol):
    """A batch on its way.

    Attributes:
      queued: what the first steps of the batches behind it will use, as far as it is known.
    """

    queued: Queue

    @property
    def ends(self) -> bool:
        """Whether the coming step is its last, as far as its limits say."""

    def member(self) -> Member:
        """Its part in the coming super-step."""

    def take(self, hidden: jax.Array) -> bool:
        """Takes the final hidden states [B, T, D] of that part; whether a further step is wanted."""

    def result(self) -> Result:
        """What came of it, once no step is wanted any more."""


def run_blocks[Result](
    session: InferenceSession, runs: Iterable[Run[Result]], forecaster: Forecaster, batches_per_block: int = 1
) -> Iterator[Result]:
    """Brings all batches through; yields what came of each, in their order.

    Every batch that runs takes part in every super-step, so that none waits for others once it has begun.

    Args:
      runs: taken from one at a time, as there is room: making one may embed its prompts.
      forecaster: horizon of each super-step.
      batches_per_block: M, batches that run at once.
    """
    waiting = iter(enumerate(runs))
    running: list[tuple[int, Run[Result]]] = []  # with the numbers of the batches
    results: dict[int, Result] = {}  # of batches that have ended and wait for one before them
    next_number = 0
    while True:
        running += _newcomers(waiting, batches_per_block - len(running), forecaster)
        if not running:
            return
        running, ended = _advance(session, forecaster, running)
        results |= ended
        if not running:
            session.rest()
        while next_number in results:
            yield results.pop(next_number)
            next_number += 1


def _newcomers[R: Run](waiting: Iterator[tuple[int, R]], most: int, forecaster: Forecaster) -> list[tuple[int, R]]:
    newcomers = []
    for numbered in itertools.islice(waiting, most):
        forecaster.expect(numbered[1].queued)
        newcomers.append(numbered)
    return newcomers


def _advance[Result](
    session: InferenceSession, forecaster: Forecaster, running: Sequence[tuple[int, Run[Result]]]
) -> tuple[list[tuple[int, Run[Result]]], dict[int, Result]]:
    """Takes all batches one step further; returns those that go on, and what came of the others."""
    going_on, ended = [], {}
    for (number, run), hidden in zip(running, _super_step(session, forecaster, running), strict=True):
        if run.take(hidden):
            going_on.append((number, run))
        else:
            ended[number] = run.result()
    return going_on, ended


def _super_step(
    session: InferenceSession, forecaster: Forecaster, running: Sequence[tuple[int, Run[Any]]]
) -> list[jax.Array]:
    """Final hidden states [B, T, D] of each batch; nothing else that the step needed lives on."""
    ends = [run.ends for _, run in running]
    members = [run.member() for _, run in running]
    return session.super_step(members, forecaster.horizon(members, ends))
