"""Writes a module in the Hugging Face layout that transformers 5 reads and writes."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from safetensors import SafetensorError
from safetensors.numpy import save_file

from expertflow_jax.checkpoints.families import family_of
from expertflow_jax.checkpoints.files import INDEX, SINGLE
from expertflow_jax.errors import InputError, brief
from expertflow_jax.files import check_room, make_folder, whole_file, write_error, write_json
from expertflow_jax.models.causal_lm import CausalLM, ModelConfig

CONFIG = "config.json"
SHARD_BYTES = 5 * 10**9


def save_hf(directory: str | Path, config: ModelConfig, module: CausalLM, dtype: Any) -> None:
    """Writes model.safetensors (several shards with an index above SHARD_BYTES), then config.json.

    The folder has its config.json once all weights are whole, so what a kill leaves is no checkpoint. An earlier
    checkpoint in the folder stops being one when the writing begins.

    Args:
      directory: made if need be.
      config, module: the module holds its experts.
      dtype: that tensors are stored in.

    Raises:
      InputError: a file cannot be written.
    """
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
    folder = make_folder(directory)
    for name in (CONFIG, SINGLE, INDEX):
        _remove(folder / name)
    _write(folder, tensors)
    write_json(folder / CONFIG, config.to_hf() | {"dtype": str(dtype)})


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
        _write_shard(directory / SINGLE, shards[0])
        return
    where: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        _write_shard(directory / file, shard)
        where |= dict.fromkeys(shard, file)
    total = sum(tensor.nbytes for tensor in tensors.values())
    write_json(directory / INDEX, {"metadata": {"total_size": total}, "weight_map": where})


def _write_shard(path: Path, tensors: dict[str, np.ndarray]) -> None:
    check_room(path, sum(tensor.nbytes for tensor in tensors.values()))
    try:
        with whole_file(path) as file:
            save_file(tensors, file.name, metadata={"format": "pt"})
    except SafetensorError as error:
        raise InputError(f"{path}: cannot be written ({brief(str(error))}); free some space and rerun") from error


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise write_error(path, error) from error
