"""The host tier: every expert of the model as one contiguous flat buffer in pinned host memory.

One buffer per expert, so that one transfer moves all its matrices at full bandwidth (imp #236 measured 2
pageable copies at 9.6 GB/s against 1 pinned at 32.4). Experts are read-only: an evicted one is never copied
back.
Axes: L MoE layers, E experts, P numbers in an expert (see `models.experts.ExpertLayout`), D model width, F
expert width.
"""

from typing import Protocol

import jax
import numpy as np

from expertflow_jax.errors import InputError
from expertflow_jax.models.experts import BufferLayout


class HostTier(Protocol):
    """What the engine asks of the host side; keys are layer * num_experts + expert."""

    num_layers: int
    num_experts: int
    expert_bytes: int

    def source(self, key: int) -> jax.Array | None:
        """The expert's host buffer, or None where only sizes are simulated."""

    def unpinned_bytes(self, key: int) -> int:
        """Bytes that must be read from disk before `source` gives the expert; 0 if it is in host memory."""

    def reset(self) -> None:
        """Brings the tier to the state from which runs start."""


def pinned_memory(device: jax.Device | None = None) -> jax.sharding.SingleDeviceSharding:
    """Where host buffers live: pinned host memory of `device`, the first local one by default."""
    return jax.sharding.SingleDeviceSharding(device or jax.local_devices()[0], memory_kind="pinned_host")


class ExpertStore:
    """Pinned host buffers of all experts of one model.

    Attributes:
      num_layers, num_experts: L, E.
      expert_bytes: bytes of one expert.
    """

    def __init__(self, layout: BufferLayout, num_layers: int, num_experts: int, device: jax.Device | None = None):
        """
        Args:
          layout: how an expert lies in its buffer.
          num_layers, num_experts: L, E.
          device: whose pinned host memory holds the experts; the first local device by default.
        """
        self.layout = layout
        self.num_layers = num_layers
        self.num_experts = num_experts
        self.expert_bytes = int(layout.nbytes)
        self._memory = pinned_memory(device)
        self._buffers: list[jax.Array | None] = [None] * (num_layers * num_experts)

    def put(self, layer: int, expert: int, gate_up: np.ndarray, down: np.ndarray) -> None:
        """Stores one expert: gate_up [D, 2F], down [F, D]; the data is copied.

        Raises:
          InputError: the indices or the shapes do not belong to this model.
        """
        self._keep(layer, expert, np.asarray(self.layout.pack(gate_up, down)))

    def put_flat(self, layer: int, expert: int, flat: np.ndarray) -> None:
        """Stores one expert from its flat form [P]; the data is copied.

        Raises:
          InputError: the indices or the size do not belong to this model.
        """
        self._keep(layer, expert, np.array(flat, dtype=self.layout.dtype, copy=True))

    def _keep(self, layer: int, expert: int, own: np.ndarray) -> None:
        """Stores memory that nobody else writes to: `device_put` may use it rather than copy it."""
        if not (0 <= layer < self.num_layers and 0 <= expert < self.num_experts):
            raise InputError(
                f"expert {expert} of layer {layer}: the model has {self.num_layers} layers of "
                f"{self.num_experts} experts; check the checkpoint against its config"
            )
        if own.shape != (self.layout.size,):
            raise InputError(
                f"expert {expert} of layer {layer} has {own.size} numbers, the config says "
                f"{self.layout.size}; check the checkpoint against its config"
            )
        own.flags.writeable = False
        self._buffers[layer * self.num_experts + expert] = jax.device_put(own, self._memory)

    def buffer(self, layer: int, expert: int) -> jax.Array:
        """The expert's flat host buffer [P], memory kind pinned_host."""
        return self.source(layer * self.num_experts + expert)

    def source(self, key: int) -> jax.Array:
        """The same by key = layer * num_experts + expert.

        Raises:
          InputError: the checkpoint did not bring this expert.
        """
        buffer = self._buffers[key]
        if buffer is None:
            layer, expert = divmod(key, self.num_experts)
            raise InputError(f"expert {expert} of layer {layer} was never loaded; the checkpoint is incomplete")
        return buffer

    def unpinned_bytes(self, key: int) -> int:
        """0: every expert is in host memory."""
        return 0

    def reset(self) -> None:
        """Nothing to do: what is stored stays."""

    @property
    def missing(self) -> list[tuple[int, int]]:
        """(layer, expert) of every expert not stored yet."""
        return [divmod(key, self.num_experts) for key, buffer in enumerate(self._buffers) if buffer is None]

    @property
    def nbytes(self) -> int:
        """Host bytes held."""
        return sum(buffer.nbytes for buffer in self._buffers if buffer is not None)


class ExpertSizes:
    """A host tier that knows only how large its experts are: for replaying routing traces without weights."""

    def __init__(self, num_layers: int, num_experts: int, expert_bytes: int):
        self.num_layers = num_layers
        self.num_experts = num_experts
        self.expert_bytes = expert_bytes

    def source(self, key: int) -> None:
        return None

    def unpinned_bytes(self, key: int) -> int:
        return 0

    def reset(self) -> None:
        pass
