"""Token scheduling: which waiting sequences run together, so that a batch activates few distinct experts.

The token scheduler of ExpertFlow (2410.17954) behind one interface:
`make_scheduler(name, batch_size=..., seed=..., max_wait=...).plan(signatures, arrival)`. To add one, subclass
`Scheduler` (`base.py`; `greedy.py` is a short example) and name it as "package.module:Class" in a config.
"""

from expertflow_jax import names
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
    "scheduler_class",
]

SCHEDULERS: dict[str, type[Scheduler]] = {
    scheduler.name: scheduler
    for scheduler in (FifoScheduler, RandomScheduler, KMeansScheduler, GreedyScheduler, LocalSearchScheduler)
}


def scheduler_class(scheduler: str | type[Scheduler] | Scheduler) -> type[Scheduler] | Scheduler:
    """The class that is meant by a name of `SCHEDULERS` or "package.module:Class"; a class or an object as it is.

    Raises:
      InputError: there is no such scheduler (the nearest name is suggested) or module, or it is no `Scheduler`.
    """
    if isinstance(scheduler, str):
        scheduler, _ = names.split_options("scheduler", scheduler)
    return names.resolve("scheduler", scheduler, SCHEDULERS, Scheduler)


def make_scheduler(
    name: str | type[Scheduler] | Scheduler, *, batch_size: int, seed: int = 0, max_wait: int | None = None
) -> Scheduler:
    """A scheduler for batches of this size; an object is passed on as it is.

    Args:
      name: see `scheduler_class`; it may carry further options of the class.
      batch_size: most sequences of a batch.
      seed: of what is drawn at random (`random`, `kmeans`).
      max_wait: batches that a sequence may be passed over; None: until the window ends.

    Raises:
      InputError: as `scheduler_class`, or a bad number or option.
    """
    if isinstance(name, Scheduler):
        return name
    options = {"batch_size": batch_size, "seed": seed, "max_wait": max_wait}
    return names.make("scheduler", name, SCHEDULERS, Scheduler, **options)
