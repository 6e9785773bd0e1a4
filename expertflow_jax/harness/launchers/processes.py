"""Workers that are processes of this machine.

They are spawned, not forked: JAX's threads do not survive a fork. A worker ends with this process, however that ends.
"""

import contextlib
import functools
import multiprocessing
import os
import signal
import threading
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any

from expertflow_jax import compilation_cache
from expertflow_jax.errors import InputError
from expertflow_jax.harness.launchers.jobs import Died, Ended, Failure, Job, OnNote, Start, attempt, failure_of

_GRACE = 3.0  # seconds that a worker has to end


class _Worker:
    """A process with the end of the pipe that it listens to."""

    def __init__(self, start: Start, environment: Mapping[str, str]):
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, start, dict(environment)), daemon=True)
        self.process.start()
        theirs.close()  # so that the pipe ends with the process
        self.job: Job | None = None

    def begin(self, job: Job) -> None:
        self.job = job
        with contextlib.suppress(OSError):  # it has died: `wait` will say so
            self.pipe.send(job)

    def end(self) -> None:
        self.process.terminate()
        self.process.join(_GRACE)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
        self.pipe.close()


class Processes:
    """As many processes as workers (`Pool`)."""

    def __init__(self, start: Start, environments: Sequence[Mapping[str, str]], on_note: OnNote):
        """
        Args:
          environments: one for each worker, variables that it has besides this process's.
        """
        self.workers = len(environments)
        self._start, self._environments, self._on_note = start, environments, on_note
        self._processes: list[_Worker | None] = [None] * self.workers

    def begin(self, job: Job) -> None:
        place = next(n for n, worker in enumerate(self._processes) if worker is None or worker.job is None)
        worker = self._processes[place] or _Worker(self._start, self._environments[place])
        self._processes[place] = worker
        worker.begin(job)

    def wait(self) -> Ended | Died:
        while True:
            pipes = {worker.pipe: n for n, worker in enumerate(self._processes) if worker is not None and worker.job}
            for pipe in wait(list(pipes)):
                assert isinstance(pipe, Connection)
                if (ended := self._hear(pipes[pipe])) is not None:
                    return ended

    def _hear(self, place: int) -> Ended | Died | None:
        worker = self._processes[place]
        assert worker is not None
        assert worker.job is not None
        try:
            said: Any = worker.pipe.recv()
        except (EOFError, OSError):
            self._processes[place] = None
            worker.end()
            return Died(worker.job, f"exit code {worker.process.exitcode}")
        match said:
            case Ended():
                worker.job = None
                return said
            case Failure(refusal=True):
                raise InputError(said.message)
            case Failure():
                raise RuntimeError(f"a worker cannot be made ready:\n{said.traceback}")
            case parts, of:
                self._on_note(worker.job.name, parts, of)
        return None

    def close(self) -> None:
        """Ends all workers at once."""
        workers = [worker for worker in self._processes if worker is not None]
        self._processes = [None] * self.workers
        for worker in workers:
            worker.process.terminate()
        for worker in workers:
            worker.end()


def _serve(pipe: Connection, start: Start, environment: Mapping[str, str]) -> None:
    """A worker's life. It says `Ended` of each job, (parts, of) in between, and a `Failure` if it cannot begin."""
    os.environ.update(environment)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the first one ends the others
    threading.Thread(target=_end_with_parent, daemon=True).start()
    compilation_cache.enable()
    try:
        work = start()
    except Exception as error:
        pipe.send(failure_of(error))
        return
    while True:
        try:
            job = pipe.recv()
        except EOFError:
            return
        pipe.send(attempt(job, functools.partial(work, job.work, lambda parts, of: pipe.send((parts, of)))))


def _end_with_parent() -> None:
    """Also if it was killed: nobody would take what this process is at, and another run may begin the same job."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
