"""Name table of Qwen3-VL-MoE: our parameter paths to Hugging Face's tensor names and layouts.

Linear kernels are [in, out] here and [out, in] there; the patch embedding is a Conv3d there. Axes: E experts,
D model width, F expert width.
"""

from typing import Any

import numpy as np

from expertflow_jax.models.qwen3_vl_moe import Qwen3VLMoeConfig

Path = tuple[Any, ...]

_LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias", "embedding": "weight"}
_TRUNK = {
    "embed_tokens": "model.language_model.embed_tokens",
    "norm": "model.language_model.norm",
    "lm_head": "lm_head",
}


def hf_name(path: Path) -> str:
    """The tensor's name in a checkpoint, for a parameter outside the experts."""
    *modules, leaf = path
    head, rest = modules[0], [str(m) for m in modules[1:]]
    if head in _TRUNK:
        return f"{_TRUNK[head]}.{_LEAVES[leaf]}"
    if head == "layers":
        number, *inner = rest
        if inner == ["router"]:
            inner = ["mlp", "gate"]
        return ".".join(["model.language_model.layers", number, *inner, _LEAVES[leaf]])
    if rest[0] == "patch_embed":
        rest = ["patch_embed", "proj"]
    elif rest[0] == "deepstack_mergers":
        rest[0] = "deepstack_merger_list"
    elif rest[0] == "blocks" and rest[2] in ("qkv", "proj"):
        rest.insert(2, "attn")
    return ".".join(["model.visual", *rest, _LEAVES[leaf]])


def hf_shape(config: Qwen3VLMoeConfig, path: Path, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The tensor's shape in a checkpoint."""
    if path[:2] == ("vision", "patch_embed") and path[-1] == "kernel":
        vision = config.vision
        return (shape[1], vision.in_channels, vision.temporal_patch_size, vision.patch_size, vision.patch_size)
    return shape[::-1] if path[-1] == "kernel" else shape


def from_hf(path: Path, tensor: np.ndarray) -> np.ndarray:
    """A checkpoint's tensor in our layout."""
    if path[-1] != "kernel":
        return tensor
    return np.ascontiguousarray(tensor.reshape(tensor.shape[0], -1).T)


def to_hf(config: Qwen3VLMoeConfig, path: Path, array: np.ndarray) -> np.ndarray:
    """The inverse of `from_hf`."""
    shape = hf_shape(config, path, array.shape)
    return np.ascontiguousarray(array.T).reshape(shape) if path[-1] == "kernel" else array


def expert_names(layer: int) -> tuple[str, str]:
    """Names of a layer's fused gate_up and down tensors; `layer` counts all layers."""
    prefix = f"model.language_model.layers.{layer}.mlp.experts"
    return f"{prefix}.gate_up_proj", f"{prefix}.down_proj"


def expert_shapes(config: Qwen3VLMoeConfig) -> tuple[tuple[tuple[int, ...], ...], tuple[tuple[int, ...], ...]]:
    """(gate_up, down) shapes in the two layouts in use: the hub's ([E, D, 2F], [E, F, D]), transformers 5's
    ([E, 2F, D], [E, D, F]). They never both agree, so a shape tells the layout."""
    text = config.text
    e, d, f = text.num_experts, text.hidden_size, text.moe_intermediate_size
    return ((e, d, 2 * f), (e, f, d)), ((e, 2 * f, d), (e, d, f))
