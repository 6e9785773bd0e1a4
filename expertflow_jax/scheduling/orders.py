"""The schedulers that look at no forecast: order of arrival, and a seeded shuffle.

`random` is the study's control: what it changes, regrouping alone changes. Axes: W waiting sequences.
"""

import numpy as np

from expertflow_jax.scheduling.base import Scheduler


class FifoScheduler(Scheduler):
    """Sequences run in order of arrival."""

    name = "fifo"
    uses_forecast = False

    def _form(self, signatures, sizes, rng):
        return np.split(np.arange(len(signatures)), np.cumsum(sizes)[:-1])


class RandomScheduler(Scheduler):
    """Sequences run in a seeded random order."""

    name = "random"
    uses_forecast = False

    def _form(self, signatures, sizes, rng):
        batches = np.split(rng.permutation(len(signatures)), np.cumsum(sizes)[:-1])
        return [np.sort(batch) for batch in batches]
