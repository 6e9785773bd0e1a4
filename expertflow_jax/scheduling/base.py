"""The token scheduler's one interface, and what every scheduler obeys: balanced batches and bounded waiting.

A window of W sequences waits. A scheduler splits it into ceil(W / batch size) batches whose sizes differ by at most
one, in the order in which they run. Waiting is measured against order of arrival: a sequence that `fifo` would run in
batch j runs in batch j + `max_wait` at the latest, so nobody starves however awkward its route is. That holds for any
grouping inside a run of `max_wait` + 1 successive `fifo` batches, so a longer window is planned run by run. So is one
of more sequences than the scheduler's `longest`, since what planning takes per sequence grows with those planned
together (docs/engine.md).
Axes: W waiting sequences, L MoE layers, E experts, B sequences of a batch.
"""

import contextlib
import functools
import zlib
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float32, Int, Int32
from threadpoolctl import ThreadpoolController

from expertflow_jax.errors import InputError


class Scheduler:
    """Forms batches. Subclasses implement `_form`; `plan` checks what goes in and what comes out.

    Attributes:
      name: as in configs and results.
      uses_forecast: False if signatures are ignored (any array [W, L, E] will do then).
      longest: most sequences planned together, if there is a forecast.
      batch_size: most sequences of a batch.
      seed: of whatever is drawn at random.
      max_wait: batches that a sequence may be passed over; None: until the window ends.
    """

    name = ""
    uses_forecast = True
    longest = 512

    def __init__(self, batch_size: int, seed: int = 0, max_wait: int | None = None):
        self.batch_size = _whole("batch_size", batch_size, 1)
        self.seed = _whole("seed", seed, 0)
        self.max_wait = None if max_wait is None else _whole("max_wait", max_wait, 0)

    def plan(
        self, signatures: Float32[np.ndarray, "W L E"], arrival: Sequence[float] | None = None
    ) -> list[Int32[np.ndarray, " B"]]:
        """Batches of indices into the window, in the order in which they run.

        The same arguments give the same plan: a scheduler keeps no state between windows.

        Args:
          signatures: probability that a sequence uses an expert; other numbers are turned into float32.
          arrival: [W] numbers that order the sequences by arrival (ties by index); by default their order in
            the window. Random draws also depend on it, so windows that arrive later draw differently.

        Raises:
          InputError: signatures of another shape or outside [0, 1], or arrival of another length.
        """
        signatures = _checked_signatures(signatures)
        keys = np.arange(len(signatures)) if arrival is None else np.asarray(arrival)
        if keys.shape != (len(signatures),):
            raise InputError(f"arrival: shape {keys.shape} for a window of {len(signatures)} sequences")
        if len(signatures) == 0:
            return []
        order = np.argsort(keys, kind="stable")
        sizes = batch_sizes(len(order), self.batch_size)
        run = len(sizes) if self.max_wait is None else self.max_wait + 1
        if self.uses_forecast:
            run = min(run, max(2, self.longest // self.batch_size))
        rng = np.random.default_rng([self.seed, zlib.crc32(np.ascontiguousarray(keys, np.float64).tobytes())])
        plan: list[np.ndarray] = []
        planned = 0
        for first in range(0, len(sizes), run):
            part = sizes[first : first + run]
            waiting = order[planned : planned + int(part.sum())]
            planned += len(waiting)
            # Sums must not depend on how many threads share them: the same forecast, the same batches.
            with _thread_pools().limit(limits=1) if self.uses_forecast else contextlib.nullcontext():
                batches = self._form(signatures[waiting], part, rng) if len(part) > 1 else [np.arange(len(waiting))]
            plan += [waiting[batch].astype(np.int32) for batch in batches]
        return plan

    def _form(
        self, signatures: Float32[np.ndarray, "W L E"], sizes: Int[np.ndarray, " batches"], rng: np.random.Generator
    ) -> list[Int[np.ndarray, " B"]]:
        """Batches of arrival ranks, in the order in which they run; any grouping keeps the bound on waiting.

        Args:
          signatures: in order of arrival.
          sizes: sequences of each batch, never decreasing.
          rng: seeded for this window.
        """
        raise TypeError(f"{type(self).__name__} does not say how it forms batches")


@functools.cache
def _thread_pools() -> ThreadpoolController:
    """Finding them takes milliseconds."""
    return ThreadpoolController()


def batch_sizes(count: int, batch_size: int) -> Int[np.ndarray, " batches"]:
    """ceil(count / batch_size) sizes that differ by at most one, the smaller first."""
    batches = -(-count // batch_size)
    small, larger = divmod(count, batches)
    return np.full(batches, small) + (np.arange(batches) >= batches - larger)


def oldest_first(batches: list[Int[np.ndarray, " B"]]) -> list[Int[np.ndarray, " B"]]:
    """The batches, smaller ones first and then by their oldest member, each in order of arrival."""
    return sorted((np.sort(batch) for batch in batches), key=lambda batch: (len(batch), batch[0]))


def _whole(name: str, value: int, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
        raise InputError(f"{name}: {value!r} is not a whole number of at least {least}")
    return int(value)


def _checked_signatures(signatures: np.ndarray) -> Float32[np.ndarray, "W L E"]:
    array = np.asarray(signatures)
    if array.ndim != 3 or not np.issubdtype(array.dtype, np.number):
        raise InputError(f"signatures: want numbers of shape [window, layers, experts], got {array.shape}")
    array = array.astype(np.float32, copy=False)
    # Written so that NaN fails too; the margin is for sums of float32 probabilities.
    if array.size and not (array.min() >= -1e-6 and array.max() <= 1 + 1e-6):
        raise InputError("signatures: values outside [0, 1]; they are probabilities of using an expert")
    return np.clip(array, 0.0, 1.0)
