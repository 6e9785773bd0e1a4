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
from flax import nnx

from expertflow_jax.models import rope
from expertflow_jax.models.layers import grouped_attention, layer_norm, linear
from expertflow_jax.models.qwen3_vl_config import VisionConfig
from expertflow_jax.models.rope_scaling import inverse_frequencies

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
          where: as `vision_layout` makes it.

        Returns:
          image embeddings [N, D] and DeepStack features [n, N, D].
        """
        config = self.config
        x = self.patch_embed(pixel_values.astype(self.patch_embed.kernel.dtype))
        table = self.pos_embed.embedding[...]
        x = x + (table[where["table"]] * where["weight"][..., None]).sum(axis=-2).astype(x.dtype)
        frequencies = inverse_frequencies(config.hidden_size // config.num_heads // 2, config.rope_theta)
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
