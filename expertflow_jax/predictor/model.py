"""The routing path predictor: a small causal transformer that forecasts every MoE layer's experts in one
pass.

The idea is ExpertFlow's (2410.17954): forecast expert usage of all MoE layers in a single forward pass,
before the model computes. Theirs is an encoder-decoder over tokens; this one reads the served model's own
input embeddings, so that image and text tokens enter alike, is causal with its own KV cache, so that it
follows decoding token by token, and has one head per MoE layer (DESIGN section 8). It is pre-norm, with
rotary positions, so any length works.

Beyond the paper, further heads forecast the *following* token, which nobody has read yet: what a decode step leaves in
the cache should be what the next one needs, and successive tokens of a sequence do not route alike.
Axes: B batch, T tokens, G of them, S cache positions, D width of the served model, W width of the predictor, H heads,
N blocks, L MoE layers, E experts.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from expertflow_jax.errors import InputError

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class PredictorConfig:
    """Shape of a predictor.

    Attributes:
      input_width: D, width of the served model's input embeddings.
      moe_layers: L, MoE layers of the served model.
      num_experts: E, experts per layer.
      top_k: K, experts a token chooses at a layer.
      width: W, a multiple of 2 * heads.
      depth: N, transformer blocks.
      heads: H, attention heads.
      hidden: width of a block's feed-forward layer.
      rope_theta: base of the rotary positions.
    """

    input_width: int
    moe_layers: int
    num_experts: int
    top_k: int
    width: int = 96
    depth: int = 2
    heads: int = 4
    hidden: int = 256
    rope_theta: float = 10_000.0

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if not isinstance(value, int | float) or isinstance(value, bool) or value <= 0:
                raise InputError(f"predictor.{field.name}: {value!r} must be a positive number")
        if self.width % (2 * self.heads):
            raise InputError(f"predictor.width: {self.width} must be a multiple of 2 x heads ({2 * self.heads})")
        if self.top_k > self.num_experts:
            raise InputError(f"predictor.top_k: {self.top_k} exceeds num_experts ({self.num_experts})")

    @property
    def head_width(self) -> int:
        return self.width // self.heads

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "PredictorConfig":
        """Inverse of `to_dict`; raises InputError on unknown, missing or impossible values."""
        names = {field.name for field in dataclasses.fields(cls)}
        unknown = set(values) - names
        if unknown:
            raise InputError(f"predictor config: unknown keys {', '.join(sorted(unknown))}")
        try:
            return cls(**values)
        except TypeError as error:
            raise InputError(f"predictor config: {error}") from error


def rotate(x: Array, positions: Array, theta: float) -> Array:
    """Rotary positions: x [B, T, H, Dh], positions int32 [B, T] -> [B, T, H, Dh]."""
    half = x.shape[-1] // 2
    frequency = theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angle = positions[..., None].astype(jnp.float32) * frequency
    sin, cos = jnp.sin(angle)[:, :, None], jnp.cos(angle)[:, :, None]
    a, b = x[..., :half], x[..., half:]
    return jnp.concatenate([a * cos - b * sin, a * sin + b * cos], axis=-1)


class Block(nnx.Module):
    """Pre-norm attention and feed-forward layer."""

    def __init__(self, config: PredictorConfig, *, rngs: nnx.Rngs):
        width = config.width
        # Residual branches start small, so that depth does not change the scale at initialisation.
        small = nnx.initializers.normal(0.02 / (2 * config.depth) ** 0.5)
        self.config = config
        self.attention_norm = nnx.RMSNorm(width, rngs=rngs)
        self.qkv = nnx.Linear(width, 3 * width, use_bias=False, rngs=rngs)
        self.out = nnx.Linear(width, width, use_bias=False, kernel_init=small, rngs=rngs)
        self.mlp_norm = nnx.RMSNorm(width, rngs=rngs)
        self.up = nnx.Linear(width, config.hidden, rngs=rngs)
        self.down = nnx.Linear(config.hidden, width, kernel_init=small, rngs=rngs)

    def __call__(
        self, x: Array, positions: Array, cache: tuple[Array, Array] | None, write: Array | None
    ) -> tuple[Array, tuple[Array, Array]]:
        """x [B * T, W], positions int32 [B, T] -> x [B * T, W] and the keys and values attended to.

        With a cache (k, v each [B, S, H, Dh]) new keys go to positions `write` int32 [B, T] (S and beyond:
        dropped) and a query attends to the cache up to its own position; without, to this call's tokens.
        """
        b, t = positions.shape
        c = self.config
        qkv = self.qkv(self.attention_norm(x)).reshape(b, t, 3, c.heads, c.head_width)
        q = rotate(qkv[:, :, 0], positions, c.rope_theta)
        k, v = rotate(qkv[:, :, 1], positions, c.rope_theta), qkv[:, :, 2]
        if cache is None:
            key_positions = positions
        else:
            rows = jnp.arange(b)[:, None]
            k = cache[0].at[rows, write].set(k, mode="drop")
            v = cache[1].at[rows, write].set(v, mode="drop")
            key_positions = jnp.broadcast_to(jnp.arange(k.shape[1]), k.shape[:2])
        scores = jnp.einsum("bthd,bshd->bhts", q, k) * c.head_width**-0.5
        visible = key_positions[:, None, None, :] <= positions[:, None, :, None]
        weights = jax.nn.softmax(jnp.where(visible, scores, jnp.finfo(scores.dtype).min), axis=-1)
        attended = jnp.einsum("bhts,bshd->bthd", weights, v).reshape(b * t, c.width)
        x = x + self.out(attended)
        return x + self.down(jax.nn.gelu(self.up(self.mlp_norm(x)))), (k, v)


class Heads(nnx.Module):
    """Features of all depths -> logits of every expert at every MoE layer."""

    def __init__(self, config: PredictorConfig, *, rngs: nnx.Rngs):
        # An early MoE layer routes by little more than the token itself, a late one by context: each head
        # chooses its mixture of the depths.
        self.mixture = nnx.Param(jnp.zeros((config.moe_layers, config.depth + 1)))
        shape = (config.moe_layers, config.width, config.num_experts)
        self.weights = nnx.Param(0.02 * jax.random.normal(rngs.params(), shape))
        odds = config.top_k / config.num_experts
        bias = jnp.log(odds) - jnp.log1p(-min(odds, 0.999))
        self.bias = nnx.Param(jnp.full((config.moe_layers, config.num_experts), bias))

    def __call__(self, features: Array) -> Array:
        """features [N + 1, M, W] of M tokens -> logits float32 [M, L, E]."""
        share = jax.nn.softmax(self.mixture[...] + jnp.arange(len(features)), axis=-1)
        mixed = jnp.einsum("ln,nmw->lmw", share, features)
        logits = jnp.einsum("lmw,lwe->lme", mixed, self.weights[...]) + self.bias[...][:, None]
        return logits.transpose(1, 0, 2)


class RoutingPathPredictor(nnx.Module):
    """Input embeddings -> logits of every expert at every MoE layer, for every token and for the one after it."""

    def __init__(self, config: PredictorConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.input_norm = nnx.RMSNorm(config.input_width, rngs=rngs)
        self.project = nnx.Linear(config.input_width, config.width, rngs=rngs)
        self.blocks = nnx.List([Block(config, rngs=rngs) for _ in range(config.depth)])
        self.norm = nnx.RMSNorm(config.width, rngs=rngs)
        self.heads = Heads(config, rngs=rngs)
        self.following = Heads(config, rngs=rngs)

    def __call__(
        self,
        embeddings: Array,
        cache: tuple[Array, Array] | None = None,
        start: Array | None = None,
        lengths: Array | None = None,
        before: Array | None = None,
    ) -> tuple[Array, Array, tuple[Array, Array] | None]:
        """Forecasts T tokens of each sequence, and those that follow some of them.

        Args:
          embeddings: [B, T, D], right-padded; padding never reaches a valid token (attention is causal).
          cache: None to attend to these tokens only, or keys and values, each [N, B, S, H, Dh].
          start: int32 [B], tokens already in the cache; 0 without a cache.
          lengths: int32 [B], valid tokens of `embeddings`; the rest is kept out of the cache.
          before: int32 [B, G], places in `embeddings` whose following tokens are asked for; None: all T.

        Returns:
          logits float32 [B, T, L, E] of the tokens, logits float32 [B, G, L, E] of the tokens after `before`, and the
          updated cache (None without one).
        """
        b, t, _ = embeddings.shape
        c = self.config
        begin = jnp.zeros((b,), jnp.int32) if start is None else start
        offset = jnp.arange(t, dtype=jnp.int32)
        positions = begin[:, None] + offset
        write = None
        if cache is not None:
            valid = jnp.full((b,), t, jnp.int32) if lengths is None else lengths
            write = jnp.where(offset < valid[:, None], positions, cache[0].shape[2])
        # Tokens stay flat outside attention: on CPU the gradients of matmuls are twice as fast in two axes.
        flat = embeddings.reshape(b * t, -1).astype(jnp.float32)
        x = self.project(self.input_norm(flat))
        depths, keys, values = [x], [], []
        for i, block in enumerate(self.blocks):
            own = None if cache is None else (cache[0][i], cache[1][i])
            x, (k, v) = block(x, positions, own, write)
            depths.append(x)
            keys.append(k)
            values.append(v)
        features = jnp.stack([self.norm(depth) for depth in depths])
        logits = self.heads(features).reshape(b, t, c.moe_layers, c.num_experts)
        if before is not None:
            asked = features.reshape(-1, b, t, c.width)[:, jnp.arange(b)[:, None], before]
            features = asked.reshape(len(features), -1, c.width)
        following = self.following(features).reshape(b, -1, c.moe_layers, c.num_experts)
        return logits, following, (None if cache is None else (jnp.stack(keys), jnp.stack(values)))
