"""Reads a checkpoint: dense parameters into a module, experts one by one, so that host memory holds them once.

Axes: E experts, D model width, F expert width.
"""

import os
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from expertflow_jax.checkpoints.expert_files import ExpertFiles
from expertflow_jax.checkpoints.families import FAMILIES, family_of
from expertflow_jax.checkpoints.files import SINGLE, TensorFiles, all_finite, read_json
from expertflow_jax.checkpoints.names import DecoderNames, StoredExperts
from expertflow_jax.checkpoints.other_forms import explain
from expertflow_jax.checkpoints.quantization import refuse_quantized_config, refuse_quantized_tensors
from expertflow_jax.errors import InputError, brief
from expertflow_jax.models.causal_lm import CausalLM, ModelConfig
from expertflow_jax.models.decoder import Experts

DTYPES = {"F32": jnp.float32, "BF16": jnp.bfloat16, "F16": jnp.float32, "F64": jnp.float32}
SHOWN = 6  # names listed of each kind of error


def read_config(path: Path) -> ModelConfig:
    """The config of a checkpoint directory.

    Raises:
      InputError: no config.json, a model type that is not supported, or quantised weights.
    """
    file = path / "config.json"
    if path.is_dir() and not os.path.lexists(file):
        raise InputError(f"{file}: no such file{explain(path)}")
    values = read_json(file)
    kind = values.get("model_type")
    if not isinstance(kind, str) or kind not in FAMILIES:
        raise InputError(
            f"{file}: model_type {_quoted(kind)} is not supported; supported: {', '.join(sorted(FAMILIES))}"
        )
    refuse_quantized_config(file, values)
    if values.get("transformers_weights") is not None:
        raise InputError(
            f"{file}: transformers_weights names the file of the weights, which is not supported; remove the key and "
            f"call the file {SINGLE}"
        )
    try:
        return FAMILIES[kind].config.from_hf(values)
    except InputError as error:  # which knows no more than the file's name
        raise InputError(f"{path}/{error}" if str(error).startswith("config.json") else str(error)) from error


def loaded_config(path: Path) -> ModelConfig:
    """The config as a load would have it, from whatever is there: where the weights are, their head counts.

    Raises:
      InputError: as `read_config`, and for damaged weights.
    """
    config = read_config(path)
    if not config.tie_word_embeddings or not any(path.glob("*.safetensors")):
        return config
    return _opened(path, config)[0]


def load_dense_and_experts(path: str | Path, dtype: Any = None) -> tuple[ModelConfig, CausalLM, ExpertFiles]:
    """Loads everything but the experts, which are read when they are asked for.

    Args:
      path: directory with config.json and safetensors.
      dtype: of parameters and arithmetic; None: as stored.

    Returns:
      config; the module, built `with_experts=False`; and the experts, handed out in the module's dtype.

    Raises:
      InputError: a file is missing or damaged, the config is not supported, tensors are missing, unexpected or of the
        wrong shape (all of them in one message), or a tensor outside the experts holds NaN or infinity.
    """
    path = Path(path)
    config, files, table = _opened(path, read_config(path))
    family = family_of(config)
    dtype = _stored_dtype(path, files, table) if dtype is None else dtype
    module = nnx.eval_shape(lambda: family.module(config, rngs=nnx.Rngs(0), dtype=dtype, with_experts=False))
    flat = list(nnx.to_flat_state(nnx.state(module)))
    stored = _check(path, table, config, files, [(p, tuple(leaf.shape)) for p, leaf in flat])
    values, broken = {}, []
    for p, leaf in flat:
        tensor = files.read(table.hf_name(p))
        if not all_finite(tensor):
            broken.append(table.hf_name(p))
        values[p] = jnp.array(table.from_hf(p, tensor), dtype=leaf.dtype)
    if broken:
        raise InputError(f"{path}: {len(broken)} tensors hold NaN or infinity: {_some(sorted(broken))}")
    nnx.update(module, nnx.from_flat_state(values))
    return config, module, ExpertFiles(path, config, files, stored, np.dtype(dtype))


def load_model(path: str | Path, dtype: Any = None) -> CausalLM:
    """The whole module, experts included; arguments and errors as `load_dense_and_experts`."""
    config, module, experts = load_dense_and_experts(path, dtype)
    text, layers = config.text, config.text.moe_layers

    def described(layer: int) -> Experts | None:
        if not text.is_moe(layer):
            return None
        return nnx.eval_shape(lambda: Experts(text, dtype=module.dtype, rngs=nnx.Rngs(0)))

    module.experts = nnx.List(map(described, range(text.num_hidden_layers)))
    stacked = {
        (layer, part): np.zeros(getattr(module.experts[layer], part).shape, np.dtype(module.dtype))
        for layer in layers
        for part in ("gate_up", "down")
    }
    for number, expert, gate_up, down in experts:
        stacked[layers[number], "gate_up"][expert] = gate_up
        stacked[layers[number], "down"][expert] = down
    values: dict[Any, Any] = {("experts", *where): jnp.array(array) for where, array in stacked.items()}
    nnx.update(module, nnx.from_flat_state(values))
    return module


def _opened(path: Path, config: ModelConfig) -> tuple[ModelConfig, TensorFiles, DecoderNames]:
    """The files of a checkpoint with their name table, and the config with the head that they hold."""
    files, names = TensorFiles(path), family_of(config).names
    refuse_quantized_tensors(path, files)
    files.rename(_with_prefix(names, files.names))
    table = names.bound(config, files.names)
    _check_depth(path, table.stacks(config), files.names)
    config = table.with_stored_head(config, files)
    return config, files, names.bound(config, files.names)


def _stored_dtype(path: Path, files: TensorFiles, table: DecoderNames) -> Any:
    """That of the embeddings; float32 where there are none, which `_check` reports with all else that is missing."""
    name = table.hf_name(("embed_tokens", "embedding"))
    stored_as = files.dtype(name) if name in files.names else "F32"
    if stored_as not in DTYPES:
        raise InputError(f"{path}: tensors are stored as {stored_as}; supported: {', '.join(DTYPES)}")
    return DTYPES[stored_as]


def _with_prefix(table: DecoderNames, names: set[str]) -> dict[str, str]:
    """New names of a bare trunk's tensors: its files lack the prefix `model.`, which transformers puts before them."""
    prefix = "model."
    if not f"{table.trunk}.".startswith(prefix) or any(name.startswith(prefix) for name in names):
        return {}
    return {name: prefix + name for name in names if not name.startswith(table.head)}


def _check_depth(path: Path, stacks: dict[str, tuple[str, int]], names: set[str]) -> None:
    """Compares numbers of layers with the files, before anything is built as large as the config says."""
    for key, (module, count) in stacks.items():
        begin = f"{module}."
        layers = {name[len(begin) :].partition(".")[0] for name in names if name.startswith(begin)}
        if layers and len(layers) < count:
            raise InputError(
                f"{path}: tensors do not fit config.json: {key} is {count}, the files hold {len(layers)} of {module}"
            )


def _quoted(value: Any) -> str:
    return repr(value) if isinstance(value, str) and len(value) <= 60 else brief(value)


def _some(names: list[str]) -> str:
    return f"{', '.join(map(brief, names[:SHOWN]))}{', ...' if len(names) > SHOWN else ''}"


def _check(
    path: Path, table: DecoderNames, config: ModelConfig, files: TensorFiles, dense: list[tuple[tuple, tuple[int, ...]]]
) -> dict[int, StoredExperts]:
    """Compares names and shapes with the config; returns per MoE layer how its experts are stored."""
    expected = {table.hf_name(p): table.hf_shape(config, p, shape) for p, shape in dense}
    stored: dict[int, StoredExperts] = {}
    for layer in config.text.moe_layers:
        ways = {way: way.shapes(config, layer) for way in table.experts}
        # The way that fits, or else the one that the files come closest to.
        stored[layer] = max(ways, key=lambda way: _fitting(files, ways[way]))
        expected |= ways[stored[layer]]
    missing = sorted(name for name in expected if name not in files.names)
    misshaped = [
        f"{brief(name)} is {brief(files.shape(name))}, the config says {shape}"
        for name, shape in sorted(expected.items())
        if name in files.names and files.shape(name) != shape
    ]
    # Old files hold rotary frequencies, which follow from the config.
    unexpected = sorted(
        name for name in files.names - set(expected) - table.spare(config) if not name.endswith(".rotary_emb.inv_freq")
    )
    problems = [
        f"{len(tensors)} {kind}: {_some(tensors)}"
        for kind, tensors in (("missing", missing), ("unexpected", unexpected), ("of the wrong shape", misshaped))
        if tensors
    ]
    if problems:
        raise InputError(f"{path}: tensors do not fit config.json: {'; '.join(problems)}")
    return stored


def _fitting(files: TensorFiles, shapes: dict[str, tuple[int, ...]]) -> tuple[bool, int, int]:
    """Whether all tensors fit; how many are there at all, and of the right shape."""
    there = [name for name in shapes if name in files.names]
    right = sum(files.shape(name) == shapes[name] for name in there)
    return right == len(shapes), len(there), right


def parameter_count(module: nnx.Module) -> int:
    """Numbers in the module's parameters."""
    return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(module)))
