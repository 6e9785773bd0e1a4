"""A host tier of three levels: experts beyond a budget of host memory stay in the checkpoint's files until needed.

Pinned host memory is a cache of the files: an expert that the device wants and that is not pinned is read, packed and
pinned, and the one that was wanted longest ago is let go. Reading takes the thread that asks, which is the link's, so
compute goes on meanwhile, and a later transfer waits. Nothing of this changes a result.
Axes: L MoE layers, E experts. A key is layer * E + expert.
"""

import collections
import threading
from collections.abc import Callable

import jax
import numpy as np

from expertflow_jax.models.experts import BufferLayout, Parts
from expertflow_jax.offload.budget import HostPlan
from expertflow_jax.offload.store import pin, pinned_memory


class TieredStore:
    """Experts of one model, the most wanted in pinned host memory and all of them in files.

    Attributes:
      layout: of the pinned arrays.
      num_layers, num_experts: L, E.
      expert_bytes: bytes of one pinned expert.
      plan: how many are pinned at most.
      peak_bytes: most bytes that pinned arrays have held at once.
    """

    def __init__(
        self,
        layout: BufferLayout,
        num_layers: int,
        num_experts: int,
        read: Callable[[int, int], tuple[np.ndarray, np.ndarray]],
        plan: HostPlan,
        device: jax.Device | None = None,
    ):
        """
        Args:
          read: gives gate_up and down of (layer, expert); raises InputError if the files do not.
          device: whose pinned host memory is used; the first local device by default.
        """
        self.layout = layout
        self.num_layers = num_layers
        self.num_experts = num_experts
        self.expert_bytes = int(layout.nbytes)
        self.plan = plan
        self.peak_bytes = 0
        self._read = read
        self._memory = pinned_memory(device)
        self._pinned: collections.OrderedDict[int, Parts] = collections.OrderedDict()  # longest unused first
        self._lock = threading.Lock()
        self.prefer(None)

    def prefer(self, popularity: np.ndarray | None) -> None:
        """Says which experts `reset` pins: the most popular, or without float [L, E] the first ones of every layer."""
        if popularity is None:
            popularity = np.broadcast_to(-np.arange(self.num_experts), (self.num_layers, self.num_experts))
        order = np.argsort(-np.asarray(popularity, np.float64), axis=None, kind="stable")
        self.preferred: list[int] = order[: self.plan.pinned].tolist()

    def reset(self) -> None:
        """Pins the preferred experts, the least preferred first to go: the same state whatever ran before."""
        with self._lock:
            pinned = {key: self._pinned.get(key) for key in self.preferred}
            self._pinned.clear()
            self._pinned.update((key, parts) for key, parts in pinned.items() if parts is not None)
            del pinned
            for key in reversed(self.preferred):
                self._fetch(key)

    def source(self, key: int) -> Parts:
        """The expert's host arrays, pinned from now on.

        Raises:
          InputError: its file has become shorter, or it holds NaN or infinity.
        """
        with self._lock:
            return self._fetch(key)

    def unpinned_bytes(self, key: int) -> int:
        """Bytes that `source` would read from files now: 0 if the expert is pinned."""
        with self._lock:
            return 0 if key in self._pinned else self.plan.file_bytes

    @property
    def pinned_keys(self) -> list[int]:
        """Of the experts that are pinned, longest unused first."""
        return list(self._pinned)

    @property
    def nbytes(self) -> int:
        """Host bytes held now."""
        return len(self._pinned) * self.expert_bytes

    def _fetch(self, key: int) -> Parts:
        parts = self._pinned.get(key)
        if parts is None:
            while len(self._pinned) >= self.plan.pinned:
                self._pinned.popitem(last=False)
            packed = self.layout.pack(*self._read(*divmod(key, self.num_experts)))
            parts = self._pinned[key] = pin(packed, self._memory)
            jax.block_until_ready(parts)  # so that `packed` is free again before the next one is read
            self.peak_bytes = max(self.peak_bytes, self.nbytes)
        self._pinned.move_to_end(key)
        return parts
