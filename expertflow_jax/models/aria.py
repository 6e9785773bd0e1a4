"""Aria (2410.05993): a SigLIP vision tower whose patches a fixed number of learned queries read, and a decoder of
grouped-query attention and fine-grained experts beside shared ones, which are one wide feed-forward here.

The router takes the softmax of the chosen logits, which is that of all of them renormalised. Axes: G images, Q patches
of one image (padded), q learned queries, W tower width, H heads, M image tokens, D model width.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from expertflow_jax.models.aria_config import AriaConfig, AriaVision
from expertflow_jax.models.causal_lm import CausalLM
from expertflow_jax.models.layers import ACTIVATIONS, grouped_attention, layer_norm, linear
from expertflow_jax.models.vision import VisionPositions

PROJECTOR_EPS = 1e-5  # of its layer norms, whatever the tower's


def attend(q: jax.Array, k: jax.Array, v: jax.Array, heads: int, valid: jax.Array) -> jax.Array:
    """Attention within one image, one head after another: a head's scores of 4,900 patches alone take 96 MB.

    Args:
      q: [n, W]. k, v: [Q, W]. valid: bool [Q].

    Returns:
      [n, W].
    """

    def one_head(parts: tuple[jax.Array, ...]) -> jax.Array:
        q, k, v = (part[None, :, None] for part in parts)
        return grouped_attention(q, k, v, valid[None, None])[0]

    split = tuple(jnp.moveaxis(part.reshape(len(part), heads, -1), 1, 0) for part in (q, k, v))
    return jnp.moveaxis(jax.lax.map(one_head, split), 0, 1).reshape(q.shape)


class VisionAttention(nnx.Module):
    """Attention among the patches of an image."""

    def __init__(self, config: AriaVision, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.heads = config.num_attention_heads
        width = config.hidden_size
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (
            linear(width, width, bias=True, dtype=dtype, rngs=rngs) for _ in range(4)
        )

    def __call__(self, x: jax.Array, valid: jax.Array) -> jax.Array:
        return self.out_proj(attend(self.q_proj(x), self.k_proj(x), self.v_proj(x), self.heads, valid))


class VisionMLP(nnx.Module):
    """Two dense layers."""

    def __init__(self, config: AriaVision, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.activation = config.hidden_act
        self.fc1 = linear(config.hidden_size, config.intermediate_size, bias=True, dtype=dtype, rngs=rngs)
        self.fc2 = linear(config.intermediate_size, config.hidden_size, bias=True, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.fc2(ACTIVATIONS[self.activation](self.fc1(x)))


class VisionLayer(nnx.Module):
    """Pre-norm transformer block on one image: x [Q, W], valid bool [Q]."""

    def __init__(self, config: AriaVision, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.layer_norm1, self.layer_norm2 = (
            layer_norm(config.hidden_size, eps=config.layer_norm_eps, dtype=dtype, rngs=rngs) for _ in range(2)
        )
        self.self_attn = VisionAttention(config, dtype=dtype, rngs=rngs)
        self.mlp = VisionMLP(config, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array, valid: jax.Array) -> jax.Array:
        x = x + self.self_attn(self.layer_norm1(x), valid)
        return x + self.mlp(self.layer_norm2(x))


class VisionTower(nnx.Module):
    """Idefics3's tower. `patch_embedding` is the checkpoint's Conv2d with stride = kernel, that is, a matmul; no layer
    norm follows the last block, since the projector reads a block's output."""

    def __init__(self, config: AriaVision, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.layers_run = config.layers_run
        self.patch_embedding = linear(config.patch_dim - 1, config.hidden_size, bias=True, dtype=dtype, rngs=rngs)
        self.position_embedding = nnx.Embed(
            config.side**2, config.hidden_size, dtype=dtype, param_dtype=dtype, rngs=rngs
        )
        self.layers = nnx.List([VisionLayer(config, dtype=dtype, rngs=rngs) for _ in range(config.num_hidden_layers)])

    def __call__(self, pixels: jax.Array, table: jax.Array, valid: jax.Array) -> jax.Array:
        """One image: pixels [Q, patch_dim - 1], table int32 [Q], valid bool [Q] -> [Q, W]."""
        x = self.patch_embedding(pixels.astype(self.patch_embedding.kernel.dtype)) + self.position_embedding(table)
        for layer in list(self.layers)[: self.layers_run]:
            x = layer(x, valid)
        return x


class CrossAttention(nnx.Module):
    """Learned queries read patches. Torch's attention module projects its inputs once more: `in_proj` holds the
    three kernels of queries, keys and values side by side."""

    def __init__(self, config: AriaVision, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        width = config.hidden_size
        self.heads = config.num_attention_heads
        self.q_proj, self.k_proj, self.v_proj = (
            linear(width, width, bias=False, dtype=dtype, rngs=rngs) for _ in range(3)
        )
        self.in_proj = linear(width, 3 * width, bias=True, dtype=dtype, rngs=rngs)
        self.out_proj = linear(width, width, bias=True, dtype=dtype, rngs=rngs)
        self.linear = linear(width, width, bias=True, dtype=dtype, rngs=rngs)
        self.layer_norm, self.layer_norm_kv = (
            layer_norm(width, eps=PROJECTOR_EPS, dtype=dtype, rngs=rngs) for _ in range(2)
        )

    def __call__(self, queries: jax.Array, patches: jax.Array, valid: jax.Array) -> jax.Array:
        """queries [q, W], patches [Q, W], valid bool [Q] -> [q, W]."""
        q, patches = self.q_proj(self.layer_norm(queries)), self.layer_norm_kv(patches)
        parts = (q, self.k_proj(patches), self.v_proj(patches))
        assert self.in_proj.bias is not None
        kernels, biases = (jnp.split(leaf[...], 3, axis=-1) for leaf in (self.in_proj.kernel, self.in_proj.bias))
        q, k, v = (x @ kernel + bias for x, kernel, bias in zip(parts, kernels, biases, strict=True))
        return self.linear(self.out_proj(attend(q, k, v, self.heads, valid)))


class Projector(nnx.Module):
    """Patches of one image to tokens in the decoder's width, one for each learned query."""

    def __init__(self, config: AriaVision, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        width, out = config.hidden_size, config.out_hidden_size
        self.query = nnx.Param(0.02 * jax.random.normal(rngs.params(), (config.learned_queries, width), dtype))
        self.cross_attn = CrossAttention(config, dtype=dtype, rngs=rngs)
        self.layer_norm = layer_norm(width, eps=PROJECTOR_EPS, dtype=dtype, rngs=rngs)
        self.linear_in = linear(width, out, bias=False, dtype=dtype, rngs=rngs)
        self.linear_out = linear(out, out, bias=False, dtype=dtype, rngs=rngs)

    def __call__(self, patches: jax.Array, valid: jax.Array) -> jax.Array:
        """patches [Q, W], valid bool [Q] -> [q, D]; an image that becomes fewer tokens keeps the first ones."""
        x = self.layer_norm(self.cross_attn(self.query[...], patches, valid))
        return self.linear_out(ACTIVATIONS["gelu_new"](self.linear_in(x)))


class Aria(CausalLM):
    """The model: `CausalLM` with a vision tower, `vision`, and a `projector`."""

    def __init__(self, config: AriaConfig, *, rngs: nnx.Rngs, dtype: Any = jnp.float32, with_experts: bool = True):
        self.vision = VisionTower(config.vision, dtype=jnp.dtype(dtype), rngs=rngs)
        self.projector = Projector(config.vision, dtype=jnp.dtype(dtype), rngs=rngs)
        super().__init__(config, rngs=rngs, dtype=dtype, with_experts=with_experts)

    def vision_stage(self, pixel_values: jax.Array, where: VisionPositions) -> tuple[jax.Array, jax.Array]:
        """Patches [G, Q, patch_dim - 1] with their positions (`vision_inputs`) to [M, D], and no further levels.

        Images go through one after another, so that memory holds the activations of one.
        """

        def one_image(image: tuple[jax.Array, ...]) -> jax.Array:
            pixels, table, valid = image
            return self.projector(self.vision(pixels, table, valid), valid)

        out = jax.lax.map(one_image, (pixel_values, where["table"], where["valid"]))
        embeds = out.reshape(-1, out.shape[-1])[where["tokens"]]
        return embeds, jnp.zeros((0, *embeds.shape), embeds.dtype)
