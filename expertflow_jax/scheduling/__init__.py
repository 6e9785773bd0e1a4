"""Token scheduling: which waiting sequences run together, so that a batch activates few distinct experts.

The token scheduler of ExpertFlow (2410.17954) behind one interface:
`make_scheduler(name, batch_size=..., seed=..., max_wait=...).plan(signatures, arrival)`.
"""

import difflib

from expertflow_jax.errors import InputError
from expertflow_jax.scheduling.base import Scheduler
from expertflow_jax.scheduling.greedy import GreedyScheduler
from expertflow_jax.scheduling.kmeans import KMeansScheduler
from expertflow_jax.scheduling.local_search import LocalSearchScheduler
from expertflow_jax.scheduling.objective import expected_distinct, realised_distinct, schedule_cost
from expertflow_jax.scheduling.orders import FifoScheduler, RandomScheduler

__all__ = [
    "SCHEDULERS",
    "Scheduler",
    "expected_distinct",
    "make_scheduler",
    "realised_distinct",
    "schedule_cost",
]

SCHEDULERS: dict[str, type[Scheduler]] = {
    scheduler.name: scheduler
    for scheduler in (FifoScheduler, RandomScheduler, KMeansScheduler, GreedyScheduler, LocalSearchScheduler)
}


def make_scheduler(name: str, *, batch_size: int, seed: int = 0, max_wait: int | None = None) -> Scheduler:
    """The scheduler of that name.

    Args:
      name: one of `SCHEDULERS`.
      batch_size: most sequences of a batch.
      seed: of what is drawn at random (`random`, `kmeans`).
      max_wait: batches that a sequence may be passed over; None: until the window ends.

    Raises:
      InputError: no such scheduler (the nearest name is suggested), or a bad number.
    """
    if name not in SCHEDULERS:
        near = difflib.get_close_matches(str(name), SCHEDULERS, n=1, cutoff=0.0)[0]
        raise InputError(f"scheduler {name!r}: did you mean {near!r}? Known: {', '.join(SCHEDULERS)}")
    return SCHEDULERS[name](batch_size, seed, max_wait)
