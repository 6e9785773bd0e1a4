"""Small blocks shared by the model families. Axes: B sequences, T tokens, S cache length, D model width,
H query heads, Hkv key/value heads, Dh head width."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "silu": jax.nn.silu,
    "swish": jax.nn.silu,
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
    "gelu_new": functools.partial(jax.nn.gelu, approximate=True),
    "gelu_pytorch_tanh": functools.partial(jax.nn.gelu, approximate=True),
    "relu": jax.nn.relu,
}  # by Hugging Face's names
MASKED = -1e30  # finite, so that a row with nothing to attend to gives no NaN


def unless_huge(mean_square: jax.Array, factor: jax.Array) -> jax.Array:
    """`factor`, by which a norm multiplies; NaN where the mean square has overflowed to infinity.

    There the factor is 0, which would turn numbers that are too large (beyond 1.8e19) into zeros in silence; NaN goes
    on to the logits, which are looked at.
    """
    return jnp.where(jnp.isinf(mean_square), jnp.nan, factor)


class RMSNorm(nnx.Module):
    """Root-mean-square norm over the last axis, computed in float32; NaN where the squares overflow (`unless_huge`)."""

    def __init__(self, width: int, eps: float, *, dtype: jnp.dtype):
        self.scale = nnx.Param(jnp.ones(width, dtype))
        self.eps = eps

    def __call__(self, x: jax.Array) -> jax.Array:
        wide = x.astype(jnp.float32)
        mean_square = jnp.mean(jnp.square(wide), axis=-1, keepdims=True)
        wide = wide * unless_huge(mean_square, jax.lax.rsqrt(mean_square + self.eps))
        return self.scale[...] * wide.astype(x.dtype)


def linear(inputs: int, outputs: int, *, bias: bool, dtype: jnp.dtype, rngs: nnx.Rngs) -> nnx.Linear:
    """A dense layer whose parameters and arithmetic share one dtype; kernel [inputs, outputs]."""
    return nnx.Linear(inputs, outputs, use_bias=bias, dtype=dtype, param_dtype=dtype, rngs=rngs)


class LayerNorm(nnx.LayerNorm):
    """Flax's, with NaN where the squares overflow."""

    def __call__(self, x: jax.Array, **options: Any) -> jax.Array:
        """x [..., D]."""
        mean_square = jnp.mean(jnp.square(x.astype(jnp.float32)), axis=-1, keepdims=True)
        return unless_huge(mean_square, super().__call__(x, **options))


def layer_norm(width: int, *, eps: float = 1e-6, dtype: jnp.dtype, rngs: nnx.Rngs) -> LayerNorm:
    """Layer norm with the two-pass variance (the one-pass form loses digits)."""
    return LayerNorm(width, epsilon=eps, dtype=dtype, param_dtype=dtype, use_fast_variance=False, rngs=rngs)


class GatedMLP(nnx.Module):
    """Feed-forward block of layers without experts, and the expert that all tokens share."""

    def __init__(self, width: int, hidden: int, *, activation: str = "silu", dtype: jnp.dtype, rngs: nnx.Rngs):
        self.activation = activation
        self.gate_proj = linear(width, hidden, bias=False, dtype=dtype, rngs=rngs)
        self.up_proj = linear(width, hidden, bias=False, dtype=dtype, rngs=rngs)
        self.down_proj = linear(hidden, width, bias=False, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.down_proj(ACTIVATIONS[self.activation](self.gate_proj(x)) * self.up_proj(x))


def grouped_attention(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array) -> jax.Array:
    """Scaled dot-product attention with grouped key/value heads; scores and softmax in float32.

    Args:
      q: [B, T, H, Dh].
      k, v: [B, S, Hkv, Dh], H a multiple of Hkv.
      mask: bool, broadcastable to [B, T, S]; true where a query may look.

    Returns:
      [B, T, H * Dh].
    """
    batch, length, heads, width = q.shape
    kv_heads = k.shape[2]
    q = q.reshape(batch, length, kv_heads, heads // kv_heads, width)
    scores = jnp.einsum("btngd,bsnd->bngts", q, k, preferred_element_type=jnp.float32) * width**-0.5
    scores = jnp.where(mask[:, None, None], scores, MASKED)
    weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    return jnp.einsum("bngts,bsnd->btngd", weights, v).reshape(batch, length, heads * width)
