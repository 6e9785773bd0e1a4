"""The worker that is this process."""

import functools

from expertflow_jax.harness.launchers.jobs import Ended, Job, OnNote, Start, Work, attempt


class Inline:
    """Does a job when it is waited for (`Pool`)."""

    workers = 1

    def __init__(self, start: Start, on_note: OnNote):
        self._start = start
        self._on_note = on_note
        self._work: Work | None = None
        self._job: Job | None = None

    def begin(self, job: Job) -> None:
        self._job = job

    def wait(self) -> Ended:
        assert self._job is not None, "no job has begun"
        job, self._job = self._job, None
        work = self._work = self._work or self._start()
        return attempt(job, functools.partial(work, job.work, functools.partial(self._on_note, job.name)))

    def close(self) -> None:
        """Nothing runs."""
