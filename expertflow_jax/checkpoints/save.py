"""Writes a module in the Hugging Face layout that transformers 5 reads and writes."""

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from safetensors.numpy import save_file

from expertflow_jax.checkpoints.families import family_of
from expertflow_jax.checkpoints.files import INDEX, SINGLE
from expertflow_jax.models.causal_lm import CausalLM, ModelConfig

SHARD_BYTES = 5 * 10**9


def save_hf(directory: str | Path, config: ModelConfig, module: CausalLM, dtype: Any) -> None:
    """Writes config.json and model.safetensors (several shards with an index above SHARD_BYTES).

    Args:
      directory: made if need be.
      config, module: the module holds its experts.
      dtype: that tensors are stored in.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    dtype = np.dtype(dtype)
    table = family_of(config).names.bound(config)
    tensors: dict[str, np.ndarray] = {}
    experts: dict[int, dict[str, np.ndarray]] = {}
    for path, leaf in nnx.to_flat_state(nnx.state(module)):
        array = np.asarray(jax.device_get(leaf[...])).astype(dtype)
        if path[0] == "experts":
            experts.setdefault(int(str(path[1])), {})[str(path[-1])] = array
        else:
            tensors[table.hf_name(path)] = table.to_hf(config, path, array)
    for layer, parts in experts.items():
        tensors |= table.experts[0].write(layer, parts["gate_up"], parts["down"])
    tensors |= {name: tensors[source] for name, source in table.copies(config).items()}
    tensors = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
    values = config.to_hf() | {"dtype": str(dtype)}
    (directory / "config.json").write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    _write(directory, tensors)


def _write(directory: Path, tensors: dict[str, np.ndarray]) -> None:
    shards: list[dict[str, np.ndarray]] = [{}]
    size = 0
    for name, tensor in sorted(tensors.items()):
        if size + tensor.nbytes > SHARD_BYTES and shards[-1]:
            shards.append({})
            size = 0
        shards[-1][name] = tensor
        size += tensor.nbytes
    if len(shards) == 1:
        save_file(shards[0], directory / SINGLE, metadata={"format": "pt"})
        return
    where: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        save_file(shard, directory / file, metadata={"format": "pt"})
        where |= dict.fromkeys(shard, file)
    total = sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": where}
    (directory / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
