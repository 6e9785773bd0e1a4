"""Qwen3-VL's vision tower: patches to image tokens in the language model's width, with DeepStack features.

Patches are laid out as [frames, patches per frame] with a mask rather than as one long packed row, so attention
stays inside a frame without a block-diagonal matrix over all of them. Within a frame, patches come in merge-block
order (every spatial_merge_size ** 2 consecutive patches become one image token), as Hugging Face's processor
emits them. Axes: G frames, Q patches per frame (padded), H heads, Dh head width, N image tokens, n DeepStack
levels, D language-model width.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from expertflow_jax.errors import InputError
from expertflow_jax.models import rope
from expertflow_jax.models.layers import grouped_attention, layer_norm, linear
from expertflow_jax.models.qwen3_vl_config import VisionConfig

VisionPositions = Mapping[str, Any]


class VisionMLP(nnx.Module):
    """Two dense layers with tanh-approximated GELU."""

    def __init__(self, config: VisionConfig, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.linear_fc1 = linear(config.hidden_size, config.intermediate_size, bias=True, dtype=dtype, rngs=rngs)
        self.linear_fc2 = linear(config.intermediate_size, config.hidden_size, bias=True, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.linear_fc2(jax.nn.gelu(self.linear_fc1(x), approximate=True))


class VisionBlock(nnx.Module):
    """Pre-norm transformer block; attention within each frame, rotated by row and column."""

    def __init__(self, config: VisionConfig, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        width = config.hidden_size
        self.num_heads = config.num_heads
        self.norm1 = layer_norm(width, dtype=dtype, rngs=rngs)
        self.norm2 = layer_norm(width, dtype=dtype, rngs=rngs)
        self.qkv = linear(width, 3 * width, bias=True, dtype=dtype, rngs=rngs)
        self.proj = linear(width, width, bias=True, dtype=dtype, rngs=rngs)
        self.mlp = VisionMLP(config, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array, angles: jax.Array, valid: jax.Array) -> jax.Array:
        """x [G, Q, width], angles [G or 1, Q, Dh / 2], valid bool [G or 1, Q]."""
        frames, patches, width = x.shape
        qkv = self.qkv(self.norm1(x)).reshape(frames, patches, 3, self.num_heads, width // self.num_heads)
        q, k = rope.rotate(qkv[:, :, 0], angles), rope.rotate(qkv[:, :, 1], angles)
        x = x + self.proj(grouped_attention(q, k, qkv[:, :, 2], valid[:, None, :]))
        return x + self.mlp(self.norm2(x))


class PatchMerger(nnx.Module):
    """Joins spatial_merge_size ** 2 patches into one image token of the language model's width."""

    def __init__(self, config: VisionConfig, *, norm_after_merge: bool, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.merged = config.hidden_size * config.spatial_merge_size**2
        self.norm_after_merge = norm_after_merge
        width = self.merged if norm_after_merge else config.hidden_size
        self.norm = layer_norm(width, dtype=dtype, rngs=rngs)
        self.linear_fc1 = linear(self.merged, self.merged, bias=True, dtype=dtype, rngs=rngs)
        self.linear_fc2 = linear(self.merged, config.out_hidden_size, bias=True, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """x [G, Q, width] -> [G * Q / merge ** 2, D]."""
        if self.norm_after_merge:
            x = self.norm(x.reshape(-1, self.merged))
        else:
            x = self.norm(x).reshape(-1, self.merged)
        return self.linear_fc2(jax.nn.gelu(self.linear_fc1(x), approximate=False))


class VisionTower(nnx.Module):
    """The whole tower. `patch_embed` is the checkpoint's Conv3d with stride = kernel, that is, a matmul."""

    def __init__(self, config: VisionConfig, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.config = config
        self.patch_embed = linear(config.patch_dim, config.hidden_size, bias=True, dtype=dtype, rngs=rngs)
        self.pos_embed = nnx.Embed(
            config.num_position_embeddings, config.hidden_size, dtype=dtype, param_dtype=dtype, rngs=rngs
        )
        self.blocks = nnx.List([VisionBlock(config, dtype=dtype, rngs=rngs) for _ in range(config.depth)])
        self.merger = PatchMerger(config, norm_after_merge=False, dtype=dtype, rngs=rngs)
        self.deepstack_mergers = nnx.List(
            [
                PatchMerger(config, norm_after_merge=True, dtype=dtype, rngs=rngs)
                for _ in config.deepstack_visual_indexes
            ]
        )

    def __call__(self, pixel_values: jax.Array, where: VisionPositions) -> tuple[jax.Array, jax.Array]:
        """
        Args:
          pixel_values: [G, Q, patch_dim], normalised.
          where: as `vision_inputs` or `same_size_positions` make it.

        Returns:
          image embeddings [N, D] and DeepStack features [n, N, D].
        """
        config = self.config
        x = self.patch_embed(pixel_values.astype(self.patch_embed.kernel.dtype))
        table = self.pos_embed.embedding[...]
        x = x + (table[where["table"]] * where["weight"][..., None]).sum(axis=-2).astype(x.dtype)
        frequencies = rope.inverse_frequencies(config.hidden_size // config.num_heads // 2, config.rope_theta)
        angles = (where["row_col"][..., None].astype(jnp.float32) * frequencies).reshape(
            *where["row_col"].shape[:2], -1
        )
        levels = []
        for i, block in enumerate(self.blocks):
            x = block(x, angles, where["valid"])
            if i in config.deepstack_visual_indexes:
                levels.append(self.deepstack_mergers[config.deepstack_visual_indexes.index(i)](x))
        embeds = self.merger(x)
        deepstack = jnp.stack(levels) if levels else jnp.zeros((0, *embeds.shape), embeds.dtype)
        if where["tokens"] is None:
            return embeds, deepstack
        return embeds[where["tokens"]], deepstack[:, where["tokens"]]


def _bucket(count: int, multiple: int) -> int:
    """`count` rounded up to a multiple of an eighth of the next power of two, and of `multiple`."""
    step = max(1, (1 << max(count - 1, 1).bit_length()) // 8)
    step = -(-step // multiple) * multiple
    return -(-count // step) * step


def _axis_taps(index: np.ndarray, size: int, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Two neighbours on an axis of `side` learned positions and their linear weights, corners aligned."""
    source = index.astype(np.float32) * np.float32(side - 1) / np.float32(max(size - 1, 1))
    floor = np.floor(source)
    taps = floor.astype(np.int32)[:, None] + np.arange(2, dtype=np.int32)
    weights = np.maximum(1 - np.abs(source[:, None] - floor[:, None] - np.arange(2, dtype=np.float32)), 0)
    return np.clip(taps, 0, side - 1), weights.astype(np.float32)


def _frame_positions(config: VisionConfig, high: int, wide: int) -> dict[str, np.ndarray]:
    """Positions of one frame of `high` x `wide` patches in merge-block order, leading axis of patches."""
    merge, side = config.spatial_merge_size, round(config.num_position_embeddings**0.5)
    order = np.arange(high * wide).reshape(high // merge, merge, wide // merge, merge)
    row, col = np.divmod(order.transpose(0, 2, 1, 3).reshape(-1), wide)
    row_taps, row_weights = _axis_taps(row, high, side)
    col_taps, col_weights = _axis_taps(col, wide, side)
    return {
        "table": (row_taps[:, :, None] * side + col_taps[:, None, :]).reshape(-1, 4),
        "weight": (row_weights[:, :, None] * col_weights[:, None, :]).reshape(-1, 4),
        "row_col": np.stack([row, col], axis=-1).astype(np.int32),
        "valid": np.ones(high * wide, bool),
    }


def same_size_positions(config: VisionConfig, high: int, wide: int) -> dict[str, np.ndarray | None]:
    """Positions shared by any number of images of `high` x `wide` patches each; nothing is padded.

    With them `pixel_values` is [images, high * wide, patch_dim], and image tokens come out in that order.
    """
    return {k: v[None] for k, v in _frame_positions(config, high, wide).items()} | {"tokens": None}


def vision_inputs(
    config: VisionConfig, pixel_values: np.ndarray, grid_thw: np.ndarray
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Lays packed patches out by frame, padded to bucketed sizes (host side).

    Args:
      pixel_values: float [P, patch_dim], patches of all images one after another.
      grid_thw: int [images, 3].

    Returns:
      pixel_values float32 [G, Q, patch_dim], and the positions: `table` int32 [G, Q, 4] and `weight` float32
      [G, Q, 4] (interpolation of the learned positions), `row_col` int32 [G, Q, 2], `valid` bool [G, Q],
      `tokens` int32 [N] (where each image token stands among the merged patches; padded with 0).

    Raises:
      InputError: sizes that do not fit together.
    """
    merge = config.spatial_merge_size
    frames = [(int(h), int(w)) for t, h, w in grid_thw for _ in range(int(t))]
    counts = [h * w for h, w in frames]
    if any(h % merge or w % merge or h * w == 0 for h, w in frames):
        raise InputError(f"image_grid_thw: heights and widths must be positive multiples of {merge}")
    if pixel_values.shape != (sum(counts), config.patch_dim):
        raise InputError(
            f"pixel_values has shape {pixel_values.shape}, image_grid_thw asks for {(sum(counts), config.patch_dim)}"
        )
    size, per_frame = _bucket(len(frames), 1), _bucket(max(counts), merge**2)
    pixels = np.zeros((size, per_frame, config.patch_dim), np.float32)
    where: dict[str, np.ndarray] = {
        "table": np.zeros((size, per_frame, 4), np.int32),
        "weight": np.zeros((size, per_frame, 4), np.float32),
        "row_col": np.zeros((size, per_frame, 2), np.int32),
        "valid": np.zeros((size, per_frame), bool),
    }
    tokens = np.zeros(_bucket(sum(counts) // merge**2, 1), np.int32)
    done = placed = 0
    for i, (frame, count) in enumerate(zip(frames, counts, strict=True)):
        pixels[i, :count] = pixel_values[done : done + count]
        for key, values in _frame_positions(config, *frame).items():
            where[key][i, :count] = values
        merged = count // merge**2
        tokens[placed : placed + merged] = i * (per_frame // merge**2) + np.arange(merged)
        done, placed = done + count, placed + merged
    return pixels, where | {"tokens": tokens}
