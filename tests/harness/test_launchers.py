"""Jobs through workers: order, failures, workers that die, in this process and in others."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from expertflow_jax.errors import InputError
from expertflow_jax.harness import launchers
from expertflow_jax.harness.launchers import Job


class Arithmetic:
    """A worker: squares numbers, and does what texts say."""

    def __init__(self, folder: Path | None = None):
        self.folder = folder

    def __call__(self, what: Any, note: launchers.Note) -> Any:
        match what:
            case int():
                note(1, 2)
                return what * what
            case "divide":
                return 1 // 0
            case "refuse":
                raise InputError("questions.json: row 3 has no 'image_id'; add it")
            case "die once" if self.folder is not None and not (self.folder / "died").exists():
                (self.folder / "died").touch()
                os.kill(os.getpid(), signal.SIGKILL)
            case "die":
                os.kill(os.getpid(), signal.SIGKILL)
            case "sleep":
                time.sleep(600)
        return os.getpid()


def unready() -> launchers.Work:
    raise InputError("config key model: no such folder; name another")


def ends(jobs: list[Job], launcher: str = "", workers: int = 1, start: Callable = Arithmetic, notes=None) -> dict:
    """Results, or classes of failures, by the jobs' names in the order in which they ended."""
    noted = [] if notes is None else notes
    pool = launchers.make_pool(launcher, workers, start, lambda *note: noted.append(note))
    with contextlib.closing(launchers.run(pool, jobs)) as run:
        return {e.job.name: e.result if e.failure is None else e.failure.error for e in run}


def test_a_failed_job_takes_along_what_needs_it_and_nothing_else():
    jobs = [
        Job("a", 2),
        Job("b", "divide", frozenset({"a", "finished before"})),
        Job("c", 3, frozenset({"b"})),
        Job("d", 4, frozenset({"c"})),
        Job("e", 5, frozenset({"a"})),
    ]
    notes: list[tuple] = []
    assert ends(jobs, notes=notes) == {
        "a": 4, "b": "ZeroDivisionError", "c": "ReferenceFailed", "d": "ReferenceFailed", "e": 25
    }  # fmt: skip
    assert notes == [("a", 1, 2), ("e", 1, 2)]


def test_bad_input_ends_everything():
    with pytest.raises(InputError, match="row 3"):
        ends([Job("a", "refuse"), Job("b", 2)])
    for launcher in ("", "local"):
        with pytest.raises(InputError, match="no such folder"):
            ends([Job("a", 1)], launcher, start=unready)


def test_processes_do_the_same_and_a_killed_ones_job_is_done_again(tmp_path):
    start = _Start(tmp_path)
    jobs = [Job("a", 2), Job("b", "die once"), Job("c", "divide"), Job("d", 3, frozenset({"a"})), Job("e", "die")]
    notes: list[tuple] = []
    results = ends(jobs, "local", 2, start, notes)
    again = results.pop("b")
    assert results == {"a": 4, "c": "ZeroDivisionError", "d": 9, "e": "WorkerDied"}
    assert isinstance(again, int)
    assert again != os.getpid()
    assert sorted(notes) == [("a", 1, 2), ("d", 1, 2)]


class _Start:
    def __init__(self, folder: Path):
        self.folder = folder

    def __call__(self) -> launchers.Work:
        return Arithmetic(self.folder)


def test_workers_end_with_the_run():
    pool = launchers.make_pool("local", 1, Arithmetic, lambda *note: None)
    run = launchers.run(pool, [Job("a", "other"), Job("b", "sleep", frozenset({"a"}))])
    worker = next(run).result
    began = time.monotonic()
    run.close()
    assert time.monotonic() - began < 30
    with pytest.raises(ProcessLookupError):
        os.kill(worker, 0)


def hold() -> None:
    """Prints the number of a worker, which then does nothing for long."""
    pool = launchers.make_pool("local", 1, Arithmetic, lambda *note: None)
    for ended in launchers.run(pool, [Job("a", "other"), Job("b", "sleep", frozenset({"a"}))]):
        print(ended.result, flush=True)


@pytest.mark.slow
def test_workers_end_with_a_process_that_is_killed():
    folders = os.pathsep.join([str(Path(__file__).parents[2]), str(Path(__file__).parent)])
    process = subprocess.Popen(
        [sys.executable, "-c", "import test_launchers; test_launchers.hold()"],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": folders},
    )
    assert process.stdout is not None
    assert process.stdout.readline()
    process.kill()
    process.communicate(timeout=60)  # until standard output ends, which the worker has too


@pytest.mark.parametrize(
    ("launcher", "workers", "words"),
    [("locale", 1, "local"), ("local", 0, "workers"), ("", 2, "launcher=local")],
)
def test_bad_launchers_are_refused(launcher, workers, words):
    with pytest.raises(InputError, match=words):
        launchers.check_launcher(launcher, workers)


@pytest.mark.slow
def test_ray_does_the_same_and_a_killed_actors_job_is_done_again(tmp_path):
    pytest.importorskip("ray")
    jobs = [Job("a", 2), Job("b", "die once"), Job("c", "divide"), Job("d", 3, frozenset({"a"}))]
    handler = signal.getsignal(signal.SIGTERM)
    results = ends(jobs, "ray", 2, _Start(tmp_path))
    assert isinstance(results.pop("b"), int)
    assert results == {"a": 4, "c": "ZeroDivisionError", "d": 9}
    assert signal.getsignal(signal.SIGTERM) == handler
