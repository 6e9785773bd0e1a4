"""From a config's `launcher` and `workers` to a pool."""

import os
from collections.abc import Mapping

from expertflow_jax import names
from expertflow_jax.errors import InputError
from expertflow_jax.harness.launchers.inline import Inline
from expertflow_jax.harness.launchers.jobs import OnNote, Pool, Start
from expertflow_jax.harness.launchers.processes import Processes

LAUNCHERS = ("local", "ray")


def check_launcher(launcher: str, workers: int) -> None:
    """Raises InputError for a launcher that there is not, or a number of workers that it cannot have."""
    if not isinstance(workers, int) or workers < 1:
        raise InputError(f"config key workers: {workers!r} is below 1; it is how many cells run at once")
    if not launcher:
        if workers > 1:
            raise InputError(f"config key workers: {workers} need a launcher; add --config.launcher=local")
        return
    names.find("config key launcher:", launcher, LAUNCHERS)
    if launcher == "ray":
        from expertflow_jax.harness.launchers import ray_cluster

        ray_cluster.require()


def leave_devices_to_workers(launcher: str) -> None:
    """Call it before JAX first looks for devices: it would take most of a GPU's memory, which workers need."""
    if launcher:
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")


def make_pool(launcher: str, workers: int, start: Start, on_note: OnNote) -> Pool:
    """The workers that a config asks for; one GPU for each of them where there are any.

    Args:
      launcher: one of `LAUNCHERS`; "": this process.

    Raises:
      InputError: there are fewer GPUs than workers, or no such launcher here.
    """
    check_launcher(launcher, workers)
    if not launcher:
        return Inline(start, on_note)
    if launcher == "ray":
        from expertflow_jax.harness.launchers.ray_cluster import RayWorkers

        return RayWorkers(start, workers, on_note)
    return Processes(start, _environments(workers), on_note)


def _environments(workers: int) -> list[Mapping[str, str]]:
    gpus = _gpus()
    if not gpus:
        return [{}] * workers
    if workers > len(gpus):
        raise InputError(f"config key workers: {workers}, but there are {len(gpus)} GPUs, and each worker takes one")
    return [{"CUDA_VISIBLE_DEVICES": gpu} for gpu in gpus[:workers]]


def _gpus() -> list[str]:
    """As CUDA_VISIBLE_DEVICES names them."""
    import jax

    count = sum(device.platform == "gpu" for device in jax.local_devices())
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return (named.split(",") if named else [str(number) for number in range(count)])[:count]
