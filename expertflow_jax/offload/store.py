"""The host tier: the arrays of every expert of the model in pinned host memory.

An expert is few large arrays (`models.experts.BufferLayout`), which move in one call, in the form in which the device
computes with them. Pinned, because pageable copies are slow (imp #236: 9.6 GB/s against 32.4). Experts are read-only:
an evicted one is never copied back.
Axes: L MoE layers, E experts, D model width, F expert width.
"""

from typing import Protocol

import jax
import numpy as np

from expertflow_jax.errors import InputError
from expertflow_jax.models.experts import BufferLayout, Parts


class HostTier(Protocol):
    """What the engine asks of the host side; keys are layer * num_experts + expert."""

    num_layers: int
    num_experts: int
    expert_bytes: int

    def source(self, key: int) -> Parts | None:
        """The expert's host arrays, or None where only sizes are simulated."""

    def unpinned_bytes(self, key: int) -> int:
        """Bytes that must be read from disk before `source` gives the expert; 0 if it is in host memory."""

    def reset(self) -> None:
        """Brings the tier to the state from which runs start."""


def pinned_memory(device: jax.Device | None = None) -> jax.sharding.SingleDeviceSharding:
    """Where host buffers live: pinned host memory of `device`, the first local one by default."""
    return jax.sharding.SingleDeviceSharding(device or jax.local_devices()[0], memory_kind="pinned_host")


def pin(parts: tuple[np.ndarray, ...], memory: jax.sharding.SingleDeviceSharding) -> Parts:
    """Arrays that nobody else writes to, in pinned memory: the CPU backend may use them rather than copy them."""
    for part in parts:
        part.flags.writeable = False
    return tuple(jax.device_put(parts, memory))


class ExpertStore:
    """Pinned host arrays of all experts of one model.

    Attributes:
      num_layers, num_experts: L, E.
      expert_bytes: bytes of one expert.
    """

    def __init__(self, layout: BufferLayout, num_layers: int, num_experts: int, device: jax.Device | None = None):
        """
        Args:
          layout: of which arrays an expert consists.
          num_layers, num_experts: L, E.
          device: whose pinned host memory holds the experts; the first local device by default.
        """
        self.layout = layout
        self.num_layers = num_layers
        self.num_experts = num_experts
        self.expert_bytes = int(layout.nbytes)
        self._memory = pinned_memory(device)
        self._experts: list[Parts | None] = [None] * (num_layers * num_experts)

    def put(self, layer: int, expert: int, gate_up: np.ndarray, down: np.ndarray) -> None:
        """Stores one expert: gate_up [D, 2F], down [F, D]; the data is copied.

        Raises:
          InputError: the indices or the shapes do not belong to this model.
        """
        if not (0 <= layer < self.num_layers and 0 <= expert < self.num_experts):
            raise InputError(
                f"expert {expert} of layer {layer}: the model has {self.num_layers} layers of "
                f"{self.num_experts} experts; check the checkpoint against its config"
            )
        parts = self.layout.pack(gate_up, down)
        shapes = tuple(part.shape for part in parts)
        if shapes != self.layout.part_shapes:
            raise InputError(
                f"expert {expert} of layer {layer} has shapes {shapes}, the config says {self.layout.part_shapes}; "
                "check the checkpoint against its config"
            )
        self._experts[layer * self.num_experts + expert] = pin(parts, self._memory)

    def source(self, key: int) -> Parts:
        """The host arrays, memory kind pinned_host, of the expert with key = layer * num_experts + expert.

        Raises:
          InputError: the checkpoint did not bring this expert.
        """
        parts = self._experts[key]
        if parts is None:
            layer, expert = divmod(key, self.num_experts)
            raise InputError(f"expert {expert} of layer {layer} was never loaded; the checkpoint is incomplete")
        return parts

    def unpinned_bytes(self, key: int) -> int:
        """0: every expert is in host memory."""
        return 0

    def reset(self) -> None:
        """Nothing to do: what is stored stays."""

    @property
    def missing(self) -> list[tuple[int, int]]:
        """(layer, expert) of every expert not stored yet."""
        return [divmod(key, self.num_experts) for key, parts in enumerate(self._experts) if parts is None]

    @property
    def nbytes(self) -> int:
        """Host bytes held."""
        return sum(parts is not None for parts in self._experts) * self.expert_bytes


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
