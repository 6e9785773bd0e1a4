"""How parameters are called and laid out in Hugging Face's files; a family's name table fills in what is its own.

Linear kernels are [in, out] here and [out, in] there. Axes: E experts, D model width, F expert width.
"""

import dataclasses
from collections.abc import Collection
from typing import Any, Protocol

import numpy as np

from expertflow_jax.checkpoints.files import TensorFiles
from expertflow_jax.models.causal_lm import ModelConfig

Path = tuple[Any, ...]
Shape = tuple[int, ...]

LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias", "embedding": "weight"}


class StoredExperts(Protocol):
    """One way in which the experts of a layer may lie on disk; `layer` counts all layers."""

    def shapes(self, config: ModelConfig, layer: int) -> dict[str, Shape]:
        """Names and shapes of all tensors of the layer's experts."""

    def read(self, files: TensorFiles, layer: int, expert: int) -> tuple[np.ndarray, np.ndarray]:
        """gate_up [D, 2F] (the gate's columns first) and down [F, D] of one expert."""

    def write(self, layer: int, gate_up: np.ndarray, down: np.ndarray) -> dict[str, np.ndarray]:
        """The tensors of a layer's experts, from gate_up [E, D, 2F] and down [E, F, D]."""


@dataclasses.dataclass(frozen=True)
class FusedExperts:
    """All experts of a layer in two tensors: [E, 2F, D] and [E, D, F] where `transposed` (as transformers 5 writes
    them), else [E, D, 2F] and [E, F, D].

    Attributes:
      module: with {layer} in it.
    """

    module: str
    gate_up: str = "gate_up_proj"
    down: str = "down_proj"
    transposed: bool = True

    def _names(self, layer: int) -> tuple[str, str]:
        module = self.module.format(layer=layer)
        return f"{module}.{self.gate_up}", f"{module}.{self.down}"

    def shapes(self, config: ModelConfig, layer: int) -> dict[str, Shape]:
        text = config.text
        e, d, f = text.num_experts, text.hidden_size, text.moe_intermediate_size
        shapes = ((e, 2 * f, d), (e, d, f)) if self.transposed else ((e, d, 2 * f), (e, f, d))
        return dict(zip(self._names(layer), shapes, strict=True))

    def read(self, files: TensorFiles, layer: int, expert: int) -> tuple[np.ndarray, np.ndarray]:
        gate_up, down = (files.read(name, expert) for name in self._names(layer))
        return (gate_up.T, down.T) if self.transposed else (gate_up, down)

    def write(self, layer: int, gate_up: np.ndarray, down: np.ndarray) -> dict[str, np.ndarray]:
        if self.transposed:
            gate_up, down = gate_up.swapaxes(1, 2), down.swapaxes(1, 2)
        return dict(zip(self._names(layer), (gate_up, down), strict=True))


@dataclasses.dataclass(frozen=True)
class SeparateExperts:
    """Three linear layers per expert, [F, D], [F, D] and [D, F].

    Attributes:
      module: with {layer} in it; the expert's number follows.
    """

    module: str
    gate: str = "gate_proj"
    up: str = "up_proj"
    down: str = "down_proj"

    def _names(self, layer: int, expert: int) -> list[str]:
        module = self.module.format(layer=layer)
        return [f"{module}.{expert}.{part}.weight" for part in (self.gate, self.up, self.down)]

    def shapes(self, config: ModelConfig, layer: int) -> dict[str, Shape]:
        text = config.text
        d, f = text.hidden_size, text.moe_intermediate_size
        shapes = ((f, d), (f, d), (d, f))
        return {
            name: shape
            for expert in range(text.num_experts)
            for name, shape in zip(self._names(layer, expert), shapes, strict=True)
        }

    def read(self, files: TensorFiles, layer: int, expert: int) -> tuple[np.ndarray, np.ndarray]:
        gate, up, down = (files.read(name) for name in self._names(layer, expert))
        return np.concatenate([gate.T, up.T], axis=1), down.T

    def write(self, layer: int, gate_up: np.ndarray, down: np.ndarray) -> dict[str, np.ndarray]:
        tensors: dict[str, np.ndarray] = {}
        for expert, (both, back) in enumerate(zip(gate_up, down, strict=True)):
            parts = (*np.split(both.T, 2), back.T)
            tensors |= dict(zip(self._names(layer, expert), parts, strict=True))
        return tensors


@dataclasses.dataclass(frozen=True)
class DecoderNames:
    """The name table of a decoder.

    Attributes:
      experts: ways in which they may lie on disk; the first is the one we write.
      trunk: module of embeddings, layers and last norm.
      block: module of router and shared expert in a layer.
      router, shared_expert: modules in the block.
      head: module of the output projection.
      table: module of the embeddings, if it is another than the trunk's.
    """

    experts: tuple[StoredExperts, ...]
    trunk: str = "model"
    block: str = "mlp"
    router: str = "gate"
    shared_expert: str = "shared_expert"
    head: str = "lm_head"
    table: str = ""

    def bound(self, config: ModelConfig, names: Collection[str] | None = None) -> "DecoderNames":
        """The table of one model; `names`: of the tensors in the files that are to be read with it."""
        return self.headed(config, names)

    def headed(self, config: ModelConfig, names: Collection[str] | None) -> "DecoderNames":
        """The table for files that hold a tied head alone: then it is the embedding table too, as in transformers."""
        head, table = f"{self.head}.weight", f"{self.trunk}.embed_tokens.weight"
        alone = names is not None and config.tie_word_embeddings and head in names and table not in names
        return dataclasses.replace(self, table=self.head) if alone else self

    def stacks(self, config: ModelConfig) -> dict[str, tuple[str, int]]:
        """Key of config.json -> module that holds numbered layers, and how many the config speaks of."""
        return {"num_hidden_layers": (f"{self.trunk}.layers", config.text.num_hidden_layers)}

    def with_stored_head(self, config: ModelConfig, files: TensorFiles) -> ModelConfig:
        """The config as transformers loads it: a head that config.json ties but the files hold with other numbers
        than the embeddings stays the files' own.

        Args:
          files: with names as `bound` expects them.
        """
        head, table = f"{self.head}.weight", self.hf_name(("embed_tokens", "embedding"))
        if not config.tie_word_embeddings or not {head, table} <= files.names or files.same(head, table):
            return config
        return dataclasses.replace(config, tie_word_embeddings=False)  # type: ignore[type-var]

    def spare(self, config: ModelConfig) -> set[str]:
        """Tensors that may be stored without being needed: a tied head."""
        return {f"{self.head}.weight"} if config.tie_word_embeddings else set()

    def copies(self, config: ModelConfig) -> dict[str, str]:
        """Tensors that are written as copies of others."""
        return {}

    def hf_name(self, path: Path) -> str:
        """The tensor's name in a checkpoint, for a parameter outside the experts."""
        head, *rest, leaf = (str(part) for part in path)
        if head == "lm_head":
            return f"{self.head}.{LEAVES[leaf]}"
        if head == "embed_tokens" and self.table:
            return f"{self.table}.{LEAVES[leaf]}"
        if head == "layers":
            number, first, *inner = rest
            blocks = {
                "router": [self.block, self.router],
                "shared_expert": [self.block, self.shared_expert],
                "shared_expert_gate": [self.block, "shared_expert_gate"],
            }
            rest = [number, *blocks.get(first, [first]), *inner]
        return ".".join([self.trunk, head, *rest, LEAVES[leaf]])

    def hf_shape(self, config: ModelConfig, path: Path, shape: Shape) -> Shape:
        """The tensor's shape in a checkpoint."""
        return shape[::-1] if path[-1] == "kernel" else shape

    def from_hf(self, path: Path, tensor: np.ndarray) -> np.ndarray:
        """A checkpoint's tensor in our layout."""
        if path[-1] != "kernel":
            return tensor
        return np.ascontiguousarray(tensor.reshape(tensor.shape[0], -1).T)

    def to_hf(self, config: ModelConfig, path: Path, array: np.ndarray) -> np.ndarray:
        """The inverse of `from_hf`."""
        shape = self.hf_shape(config, path, array.shape)
        return np.ascontiguousarray(array.T).reshape(shape) if path[-1] == "kernel" else array
