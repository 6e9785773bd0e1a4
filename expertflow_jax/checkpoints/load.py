"""Reads a checkpoint: dense parameters into a module, experts one by one, so that host memory holds them once.

Axes: E experts, D model width, F expert width.
"""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from expertflow_jax.checkpoints.expert_files import ExpertFiles
from expertflow_jax.checkpoints.families import FAMILIES, family_of
from expertflow_jax.checkpoints.files import TensorFiles, all_finite, read_json
from expertflow_jax.checkpoints.names import DecoderNames, StoredExperts
from expertflow_jax.errors import InputError
from expertflow_jax.models.causal_lm import CausalLM, ModelConfig

DTYPES = {"F32": jnp.float32, "BF16": jnp.bfloat16, "F16": jnp.float32, "F64": jnp.float32}
SHOWN = 6  # names listed of each kind of error


def read_config(path: Path) -> ModelConfig:
    """The config of a checkpoint directory.

    Raises:
      InputError: no config.json, or a model type that is not supported.
    """
    values = read_json(path / "config.json")
    kind = values.get("model_type")
    if not isinstance(kind, str) or kind not in FAMILIES:
        raise InputError(
            f"{path / 'config.json'}: model_type {kind!r} is not supported; supported: {', '.join(sorted(FAMILIES))}"
        )
    return FAMILIES[kind].config.from_hf(values)


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
    config = read_config(path)
    family = family_of(config)
    files = TensorFiles(path)
    table = family.names.bound(config, files.names)
    abstract = nnx.eval_shape(lambda: family.module(config, rngs=nnx.Rngs(0), with_experts=False))
    flat = list(nnx.to_flat_state(nnx.state(abstract)))
    stored = _check(path, table, config, files, [(p, tuple(leaf.shape)) for p, leaf in flat])
    if dtype is None:
        stored_as = files.dtype(table.hf_name(("embed_tokens", "embedding")))
        if stored_as not in DTYPES:
            raise InputError(f"{path}: tensors are stored as {stored_as}; supported: {', '.join(DTYPES)}")
        dtype = DTYPES[stored_as]
    module = nnx.eval_shape(lambda: family.module(config, rngs=nnx.Rngs(0), dtype=dtype, with_experts=False))
    values, broken = {}, []
    for p, leaf in nnx.to_flat_state(nnx.state(module)):
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
    config, dense, experts = load_dense_and_experts(path, dtype)
    family, layers = family_of(config), config.text.moe_layers
    module = nnx.eval_shape(lambda: family.module(config, rngs=nnx.Rngs(0), dtype=dense.dtype))
    stacked = {
        (layer, part): np.zeros(getattr(module.experts[layer], part).shape, np.dtype(dense.dtype))
        for layer in layers
        for part in ("gate_up", "down")
    }
    for number, expert, gate_up, down in experts:
        stacked[layers[number], "gate_up"][expert] = gate_up
        stacked[layers[number], "down"][expert] = down
    values = {p: leaf[...] for p, leaf in nnx.to_flat_state(nnx.state(dense))}
    values |= {("experts", *where): jnp.array(array) for where, array in stacked.items()}
    nnx.update(module, nnx.from_flat_state(values))
    return module


def _some(names: list[str]) -> str:
    return f"{', '.join(names[:SHOWN])}{', ...' if len(names) > SHOWN else ''}"


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
        f"{name} is {files.shape(name)}, the config says {shape}"
        for name, shape in sorted(expected.items())
        if name in files.names and files.shape(name) != shape
    ]
    # Old files hold rotary frequencies, which follow from the config.
    unexpected = sorted(
        name for name in files.names - set(expected) - table.spare(config) if not name.endswith(".rotary_emb.inv_freq")
    )
    problems = [
        f"{len(found)} {kind}: {_some(found)}"
        for kind, found in (("missing", missing), ("unexpected", unexpected), ("of the wrong shape", misshaped))
        if found
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
