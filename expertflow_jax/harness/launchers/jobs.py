"""Jobs that may need each other, what became of each, and the loop that hands them out."""

import dataclasses
import traceback
from collections.abc import Callable, Generator, Iterable
from typing import Any, Protocol

from expertflow_jax.errors import InputError, NumericError
from expertflow_jax.files import refused_write, write_error

Note = Callable[[int, int], None]  # (parts of the running job that have ended, parts in all)
Work = Callable[[Any, Note], Any]  # does one job, in a worker that is ready
Start = Callable[[], Work]  # makes a worker ready; pickled where workers are other processes
OnNote = Callable[[str, int, int], None]  # (name of a running job, then as `Note`)

_MOST_DEATHS = 3  # of a job's workers, until the job counts as failed


@dataclasses.dataclass(frozen=True)
class Job:
    """One piece of work.

    Attributes:
      name: no other job has it.
      work: what `Work` is called with.
      needs: names of jobs that have to end before this one begins; names of no job are passed over.
    """

    name: str
    work: Any
    needs: frozenset[str] = frozenset()


@dataclasses.dataclass(frozen=True)
class Failure:
    """Why a job has no result.

    Attributes:
      error: name of the exception's class.
      refusal: whether the input is bad, so that nothing else would fare better.
    """

    error: str
    message: str
    traceback: str = ""
    refusal: bool = False


@dataclasses.dataclass(frozen=True)
class Ended:
    """A job that has ended, with its result or its failure."""

    job: Job
    result: Any = None
    failure: Failure | None = None


@dataclasses.dataclass(frozen=True)
class Died:
    """The worker of this job ended before the job did."""

    job: Job
    reason: str


class Pool(Protocol):
    """Workers, made ready when they begin their first job. What these note is passed on while `wait` is asked.

    Attributes:
      workers: how many jobs may run at once.
    """

    workers: int

    def begin(self, job: Job) -> None:
        """Gives the job to an idle worker; there is one."""

    def wait(self) -> Ended | Died:
        """Blocks until a job that has begun is over.

        Raises:
          InputError: a worker cannot be made ready, as the input is bad.
          RuntimeError: a worker cannot be made ready.
        """

    def close(self) -> None:
        """Ends all workers, also in the middle of a job."""


def attempt(job: Job, work: Callable[[], Any]) -> Ended:
    """Does a job; what it raises becomes its failure. Ctrl-C and SIGTERM pass through."""
    try:
        return Ended(job, work())
    except Exception as error:
        return Ended(job, failure=failure_of(error))


def failure_of(error: Exception) -> Failure:
    """What is recorded of an exception. That a model's numbers are not finite is no refusal: other experts' may be."""
    if (reason := refused_write(error)) is not None:
        error = write_error(reason.filename or "a file", reason)
    refusal = isinstance(error, InputError) and not isinstance(error, NumericError)
    return Failure(type(error).__name__, str(error), "".join(traceback.format_exception(error)), refusal)


class _Queue:
    """Which job may begin, in the order in which they were given."""

    def __init__(self, jobs: Iterable[Job]):
        self._waiting = list(jobs)
        self._open = {job.name for job in self._waiting}  # that have not ended

    def take(self) -> Job | None:
        """The first whose needs have ended; None: there is none yet."""
        for place, job in enumerate(self._waiting):
            if not job.needs & self._open:
                return self._waiting.pop(place)
        return None

    def put_back(self, job: Job) -> None:
        self._waiting.insert(0, job)

    def end(self, job: Job) -> None:
        self._open.discard(job.name)

    def drop(self, failed: Job) -> list[Job]:
        """Takes out the jobs that need one that has failed, and those that need these."""
        names, dropped = {failed.name}, []
        for job in self._waiting:  # a job stands behind what it needs
            if job.needs & names:
                names.add(job.name)
                dropped.append(job)
        self._waiting = [job for job in self._waiting if job not in dropped]
        for job in (failed, *dropped):
            self.end(job)
        return dropped


def run(pool: Pool, jobs: Iterable[Job]) -> Generator[Ended]:
    """Yields jobs as they end. Those that need a job begin once its end has been dealt with, that is when the next item
    is asked for; those that need a failed one end with it.

    Args:
      pool: closed at the end, however it comes.
      jobs: each behind those that it needs.

    Raises:
      InputError: a job or a worker says that the input is bad.
      RuntimeError: a worker cannot be made ready.
    """
    queue, running, deaths = _Queue(jobs), 0, dict[str, int]()
    try:
        while True:
            while running < pool.workers and (job := queue.take()) is not None:
                pool.begin(job)
                running += 1
            if not running:
                return
            news = pool.wait()
            running -= 1
            if isinstance(news, Died):
                deaths[news.job.name] = deaths.get(news.job.name, 0) + 1
                if deaths[news.job.name] < _MOST_DEATHS:
                    queue.put_back(news.job)
                    continue
                message = f"its worker died {_MOST_DEATHS} times ({news.reason}); fewer workers need less memory"
                news = Ended(news.job, failure=Failure("WorkerDied", message))
            if news.failure is not None and news.failure.refusal:
                raise InputError(news.failure.message)
            yield news
            if news.failure is None:
                queue.end(news.job)
                continue
            for job in queue.drop(news.job):
                message = f"{news.job.name}, which it is compared with, failed"
                yield Ended(job, failure=Failure("ReferenceFailed", message))
    finally:
        pool.close()
