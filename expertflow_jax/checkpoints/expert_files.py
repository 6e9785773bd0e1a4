"""The experts of a checkpoint, read one at a time and in any order. Axes: D model width, F expert width."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from expertflow_jax.checkpoints.files import TensorFiles, all_finite
from expertflow_jax.checkpoints.names import StoredExperts
from expertflow_jax.errors import InputError
from expertflow_jax.models.causal_lm import ModelConfig


class ExpertFiles:
    """Iterating gives (MoE layer index, expert, gate_up, down) of every expert in order, as `read` does.

    Attributes:
      num_layers, num_experts: MoE layers, and experts of each.
      file_bytes: one expert as it is stored.
    """

    def __init__(
        self, path: Path, config: ModelConfig, files: TensorFiles, stored: Mapping[int, StoredExperts], dtype: np.dtype
    ):
        """
        Args:
          path: the checkpoint, for messages.
          stored: per MoE layer, by its index among all layers, how its experts lie in the files.
          dtype: that experts are handed out in.
        """
        self._path = path
        self._files = files
        self._stored = sorted(stored.items())
        self._dtype = dtype
        self.num_layers, self.num_experts = len(stored), config.text.num_experts
        layer, way = self._stored[0]
        self.file_bytes = sum(files.nbytes(name) for name in way.shapes(config, layer)) // self.num_experts

    def read(self, layer: int, expert: int) -> tuple[np.ndarray, np.ndarray]:
        """gate_up [D, 2F] with the gate's columns first, and down [F, D]; any thread may call it.

        Args:
          layer: among the layers with experts.

        Raises:
          InputError: the file has become shorter, or the expert holds NaN or infinity.
        """
        number, way = self._stored[layer]
        matrices = way.read(self._files, number, expert)
        if not all(all_finite(part) for part in matrices):
            raise InputError(
                f"{self._path}: expert {expert} of layer {number} holds NaN or infinity; download it again, or use "
                "another checkpoint of this training"
            )
        gate_up, down = (part.astype(self._dtype, copy=False) for part in matrices)
        return gate_up, down

    def __iter__(self) -> Iterator[tuple[int, int, np.ndarray, np.ndarray]]:
        for layer in range(self.num_layers):
            for expert in range(self.num_experts):
                yield layer, expert, *self.read(layer, expert)
