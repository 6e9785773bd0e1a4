"""Brings independent jobs through workers: this process, processes of this machine, or a Ray cluster.

A worker is made ready once (`Start`) and then does one job after another. Nothing here knows what a job is about. What
a job raises is its result like any other: the rest goes on. A worker that dies loses its job, which is done again.
"""

from expertflow_jax.harness.launchers.jobs import Ended, Failure, Job, Note, OnNote, Pool, Start, Work, run
from expertflow_jax.harness.launchers.making import LAUNCHERS, check_launcher, leave_devices_to_workers, make_pool

__all__ = [
    "LAUNCHERS",
    "Ended",
    "Failure",
    "Job",
    "Note",
    "OnNote",
    "Pool",
    "Start",
    "Work",
    "check_launcher",
    "leave_devices_to_workers",
    "make_pool",
    "run",
]
