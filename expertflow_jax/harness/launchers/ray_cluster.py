"""Workers that are actors of a Ray cluster: the one that RAY_ADDRESS names, or one of this machine for this run alone.

Ray gives each worker a GPU of its own where the cluster has any. All machines have to see the workdir under one path.
"""

import os
import signal
import sys
from typing import Any

from expertflow_jax import compilation_cache
from expertflow_jax.errors import InputError
from expertflow_jax.harness.launchers.jobs import Died, Ended, Failure, Job, OnNote, Start, attempt, failure_of


def require() -> Any:
    """The module ray; raises InputError where it is not installed."""
    try:
        import ray
    except ImportError as error:
        raise InputError(
            "config key launcher: ray is not installed; pip install 'expertflow-jax[ray]', or use launcher=local"
        ) from error
    return ray


class _Worker:
    """The actor."""

    def __init__(self, start: Start):
        self._start = start
        self._work: Any = None

    def do(self, job: Job) -> Ended | Failure:
        """The job's end; a failure of its own if the worker cannot be made ready."""
        if self._work is None:
            compilation_cache.enable()
            try:
                self._work = self._start()
            except Exception as error:
                return failure_of(error)
        return attempt(job, lambda: self._work(job.work, _pass_over))


def _pass_over(parts: int, of: int) -> None:
    """Ray has no way back from within a call: cells alone move the bar."""


class RayWorkers:
    """As many actors as workers (`Pool`)."""

    def __init__(self, start: Start, workers: int, on_note: OnNote):
        self.workers = workers
        self._ray = ray = require()
        self._start = start
        self._began_cluster = not ray.is_initialized()
        if self._began_cluster:
            _begin_cluster(ray, workers)
        gpus = ray.cluster_resources().get("GPU", 0)
        if 0 < gpus < workers:
            self.close()
            raise InputError(f"config key workers: {workers}, but the cluster has {gpus:g} GPUs; each worker takes one")
        self._make = ray.remote(_Worker).options(num_cpus=1, num_gpus=1 if gpus else 0, max_restarts=0)
        self._idle: list[Any] = []
        self._running: dict[Any, tuple[Any, Job]] = {}  # by the reference to what the call will give: actor and job

    def begin(self, job: Job) -> None:
        worker = self._idle.pop() if self._idle else self._make.remote(self._start)
        self._running[worker.do.remote(job)] = worker, job

    def wait(self) -> Ended | Died:
        (ready, *_), _ = self._ray.wait(list(self._running), num_returns=1)
        worker, job = self._running.pop(ready)
        try:
            said = self._ray.get(ready)
        except self._ray.exceptions.RayActorError as error:
            return Died(job, str(error).splitlines()[0])
        if isinstance(said, Failure):
            if said.refusal:
                raise InputError(said.message)
            raise RuntimeError(f"a worker cannot be made ready:\n{said.traceback}")
        self._idle.append(worker)
        return said

    def close(self) -> None:
        """Ends the actors, and the cluster if it is this run's own."""
        if self._began_cluster:
            self._ray.shutdown()
            return
        for worker in [*self._idle, *(worker for worker, _ in self._running.values())]:
            self._ray.kill(worker)


def _begin_cluster(ray: Any, workers: int) -> None:
    """Ray puts signal handlers of its own in place of this process's; these come back."""
    address = os.environ.get("RAY_ADDRESS")
    size: dict[str, Any] = {} if address else {"num_cpus": workers, "include_dashboard": False}
    variables = {"PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)}
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        ray.init(address=address, runtime_env={"env_vars": variables}, logging_level="WARNING", **size)
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
