"""Reads a checkpoint: dense parameters into a module, experts one by one, so that host memory holds them once.

Axes: E experts, D model width, F expert width.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from expertflow_jax.checkpoints import qwen3_vl_moe as table
from expertflow_jax.checkpoints.files import TensorFiles, read_json
from expertflow_jax.errors import InputError
from expertflow_jax.models.qwen3_vl_moe import Qwen3VLMoe, Qwen3VLMoeConfig

FAMILIES = {"qwen3_vl_moe": (Qwen3VLMoeConfig, Qwen3VLMoe, table)}
DTYPES = {"F32": jnp.float32, "BF16": jnp.bfloat16, "F16": jnp.float32}
SHOWN = 6  # names listed of each kind of error

Experts = Iterator[tuple[int, int, np.ndarray, np.ndarray]]


def read_config(path: Path) -> Qwen3VLMoeConfig:
    """The config of a checkpoint directory.

    Raises:
      InputError: no config.json, or a model type that is not supported.
    """
    values = read_json(path / "config.json")
    family = values.get("model_type")
    if family not in FAMILIES:
        raise InputError(
            f"{path / 'config.json'}: model_type {family!r} is not supported; supported: {', '.join(sorted(FAMILIES))}"
        )
    return FAMILIES[family][0].from_hf(values)


def load_dense_and_experts(path: str | Path, dtype: Any = None) -> tuple[Qwen3VLMoeConfig, Qwen3VLMoe, Experts]:
    """Loads everything but the experts, which come as an iterator.

    Args:
      path: directory with config.json and safetensors.
      dtype: of parameters and arithmetic; None: as stored.

    Returns:
      config; the module, built `with_experts=False`; and an iterator of (MoE layer index, expert, gate_up [D, 2F]
      with the gate's columns first, down [F, D]) in the module's dtype.

    Raises:
      InputError: a file is missing or damaged, the config is not supported, tensors are missing, unexpected or of the
        wrong shape (all of them in one message), or a tensor outside the experts holds NaN or infinity.
    """
    path = Path(path)
    config = read_config(path)
    files = TensorFiles(path)
    abstract = nnx.eval_shape(lambda: Qwen3VLMoe(config, rngs=nnx.Rngs(0), with_experts=False))
    flat = list(nnx.to_flat_state(nnx.state(abstract)))
    layouts = _check(path, config, files, [(p, tuple(leaf.shape)) for p, leaf in flat])
    if dtype is None:
        dtype = DTYPES[files.dtype(table.hf_name(("embed_tokens", "embedding")))]
    module = nnx.eval_shape(lambda: Qwen3VLMoe(config, rngs=nnx.Rngs(0), dtype=dtype, with_experts=False))
    values = {
        p: jnp.array(table.from_hf(p, files.read(table.hf_name(p))), dtype=leaf.dtype)
        for p, leaf in nnx.to_flat_state(nnx.state(module))
    }
    # Training that diverged leaves its mark in every parameter, so the experts need not be searched too.
    broken = sorted(table.hf_name(p) for p, value in values.items() if not jnp.isfinite(value).all())
    if broken:
        raise InputError(f"{path}: {len(broken)} tensors hold NaN or infinity: {_some(broken)}")
    nnx.update(module, nnx.from_flat_state(values))
    return config, module, _experts(config, files, layouts, np.dtype(dtype))


def load_model(path: str | Path, dtype: Any = None) -> Qwen3VLMoe:
    """The whole module, experts included; arguments and errors as `load_dense_and_experts`."""
    config, dense, experts = load_dense_and_experts(path, dtype)
    text = config.text
    module = nnx.eval_shape(lambda: Qwen3VLMoe(config, rngs=nnx.Rngs(0), dtype=dense.dtype))
    state = dict(nnx.to_flat_state(nnx.state(dense)))
    layers = [i for i in range(text.num_hidden_layers) if text.is_moe(i)]
    e, d, f = text.num_experts, text.hidden_size, text.moe_intermediate_size
    gate_up = np.zeros((len(layers), e, d, 2 * f), np.dtype(dense.dtype))
    down = np.zeros((len(layers), e, f, d), np.dtype(dense.dtype))
    for layer, expert, first, second in experts:
        gate_up[layer, expert], down[layer, expert] = first, second
    values = {p: leaf[...] for p, leaf in state.items()}
    for number, layer in enumerate(layers):
        values["experts", layer, "gate_up"] = jnp.array(gate_up[number])
        values["experts", layer, "down"] = jnp.array(down[number])
    nnx.update(module, nnx.from_flat_state(values))
    return module


def _some(names: list[str]) -> str:
    return f"{', '.join(names[:SHOWN])}{', ...' if len(names) > SHOWN else ''}"


def _check(
    path: Path, config: Qwen3VLMoeConfig, files: TensorFiles, dense: list[tuple[tuple, tuple[int, ...]]]
) -> dict[int, bool]:
    """Compares names and shapes with the config; returns per layer whether its experts are stored transposed."""
    expected = {table.hf_name(p): table.hf_shape(config, p, shape) for p, shape in dense}
    missing = sorted(name for name in expected if name not in files.names)
    misshaped = [
        f"{name} is {files.shape(name)}, the config says {shape}"
        for name, shape in sorted(expected.items())
        if name in files.names and files.shape(name) != shape
    ]
    layouts: dict[int, bool] = {}
    hub, transposed = table.expert_shapes(config)
    for layer in (i for i in range(config.text.num_hidden_layers) if config.text.is_moe(i)):
        names = table.expert_names(layer)
        absent = [name for name in names if name not in files.names]
        missing += absent
        expected |= dict.fromkeys(names, ())
        if absent:
            continue
        found = tuple(files.shape(name) for name in names)
        if found not in (hub, transposed):
            misshaped.append(f"{names[0]}, down_proj are {found}, the config says {hub} or {transposed}")
        layouts[layer] = found == transposed
    # A tied head may be stored all the same.
    unexpected = sorted(files.names - set(expected) - ({"lm_head.weight"} if config.tie_word_embeddings else set()))
    problems = [
        f"{len(found)} {kind}: {_some(found)}"
        for kind, found in (("missing", missing), ("unexpected", unexpected), ("of the wrong shape", misshaped))
        if found
    ]
    if problems:
        raise InputError(f"{path}: tensors do not fit config.json: {'; '.join(problems)}")
    return layouts


def _experts(config: Qwen3VLMoeConfig, files: TensorFiles, layouts: dict[int, bool], dtype: np.dtype) -> Experts:
    for number, (layer, transposed) in enumerate(sorted(layouts.items())):
        gate_up_name, down_name = table.expert_names(layer)
        for expert in range(config.text.num_experts):
            gate_up, down = files.read(gate_up_name, expert), files.read(down_name, expert)
            if transposed:
                gate_up, down = gate_up.T, down.T
            yield number, expert, gate_up.astype(dtype), down.astype(dtype)


def parameter_count(module: nnx.Module) -> int:
    """Numbers in the module's parameters."""
    return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(module)))
