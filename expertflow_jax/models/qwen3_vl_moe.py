"""Qwen3-VL-MoE (Qwen3-VL technical report, 2511.21631; the block is Qwen3-MoE's): vision tower, interleaved M-RoPE,
grouped-query attention with q/k norm, top-k softmax router, SwiGLU experts, DeepStack.

`Qwen3VLMoe.forward` runs everything at once (training, fused reference). The stage methods run the same maths in
pieces with a KV cache, so that a runtime may fetch experts between router and experts. Axes: B sequences, T tokens,
S cache length, L MoE layers, E experts, K top-k, D model width, F expert width, N image tokens, n DeepStack levels,
V vocabulary, H/Hkv heads, Dh head width.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from expertflow_jax.models import rope, vision
from expertflow_jax.models.experts import combine, grouped_experts
from expertflow_jax.models.layers import RMSNorm, SwiGLU, grouped_attention, linear
from expertflow_jax.models.qwen3_vl_config import Qwen3VLMoeConfig, TextConfig, VisionConfig
from expertflow_jax.models.rope import rope_positions

__all__ = [
    "DecoderLayer",
    "Experts",
    "ForwardOutput",
    "Qwen3VLMoe",
    "Qwen3VLMoeConfig",
    "TextConfig",
    "VisionConfig",
    "rope_positions",
    "same_size_positions",
    "vision_inputs",
]


class ForwardOutput(NamedTuple):
    """What `Qwen3VLMoe.forward` returns."""

    logits: jax.Array  # float32 [B, T, V]
    expert_ids: jax.Array  # int32 [B, L, T, K], -1 on padding
    router_probs: jax.Array  # float32 [B, L, T, E]


class Experts(nnx.Module):
    """The experts of one layer, stacked: gate_up [E, D, 2F] (gate columns, then up) and down [E, F, D]."""

    def __init__(self, config: TextConfig, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        e, d, f = config.num_experts, config.hidden_size, config.moe_intermediate_size
        init = jax.nn.initializers.lecun_normal(batch_axis=0)
        self.gate_up = nnx.Param(init(rngs.params(), (e, d, 2 * f), dtype))
        self.down = nnx.Param(init(rngs.params(), (e, f, d), dtype))


class Attention(nnx.Module):
    """Grouped-query attention; RMS norm on each head's queries and keys, then the rotation."""

    def __init__(self, config: TextConfig, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.config = config
        d, head, bias = config.hidden_size, config.head_dim, config.attention_bias
        self.q_proj = linear(d, config.num_attention_heads * head, bias=bias, dtype=dtype, rngs=rngs)
        self.k_proj = linear(d, config.num_key_value_heads * head, bias=bias, dtype=dtype, rngs=rngs)
        self.v_proj = linear(d, config.num_key_value_heads * head, bias=bias, dtype=dtype, rngs=rngs)
        self.o_proj = linear(config.num_attention_heads * head, d, bias=bias, dtype=dtype, rngs=rngs)
        self.q_norm = RMSNorm(head, config.rms_norm_eps, dtype=dtype)
        self.k_norm = RMSNorm(head, config.rms_norm_eps, dtype=dtype)

    def project(self, x: jax.Array, positions: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """x [B, T, D] -> rotated q [B, T, H, Dh], rotated k and plain v [B, T, Hkv, Dh]."""
        config = self.config
        angles = rope.mrope_angles(positions, config.head_dim, config.rope_theta, config.mrope_section)
        shape = (*x.shape[:2], -1, config.head_dim)
        q = self.q_norm(self.q_proj(x).reshape(shape))
        k = self.k_norm(self.k_proj(x).reshape(shape))
        return rope.rotate(q, angles), rope.rotate(k, angles), self.v_proj(x).reshape(shape)


class DecoderLayer(nnx.Module):
    """One decoder layer without its experts: norms, attention, and either a router or a dense MLP."""

    def __init__(self, config: TextConfig, is_moe: bool, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.config = config
        self.is_moe = is_moe
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps, dtype=dtype)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps, dtype=dtype)
        self.self_attn = Attention(config, dtype=dtype, rngs=rngs)
        if is_moe:
            self.router = linear(config.hidden_size, config.num_experts, bias=False, dtype=dtype, rngs=rngs)
        else:
            self.mlp = SwiGLU(config.hidden_size, config.intermediate_size, dtype=dtype, rngs=rngs)

    def attend_and_route(
        self,
        x: jax.Array,
        k_cache: jax.Array,
        v_cache: jax.Array,
        positions: jax.Array,
        start: jax.Array,
        lengths: jax.Array,
    ) -> tuple[jax.Array, ...]:
        """Attention over the cache and the new tokens, then the router.

        Args:
          x: [B, T, D] residual stream.
          k_cache, v_cache: [B, S, Hkv, Dh].
          positions: int32 [3, B, T].
          start: int32 [B], tokens in the cache before this call.
          lengths: int32 [B], valid new tokens (right padded).

        Returns:
          h [B, T, D] (residual stream after attention), y [B, T, D] (normed MoE input), expert_ids int32 [B, T, K]
          (-1 on padding), expert_weights float32 [B, T, K], router_probs float32 [B, T, E], k_cache, v_cache.
        """
        h, k_cache, v_cache = self._attend_cached(x, k_cache, v_cache, positions, start, lengths)
        y, ids, weights, probs = self.route(h)
        inside = jnp.arange(x.shape[1]) < lengths[:, None]
        return h, y, jnp.where(inside[..., None], ids, -1), weights, probs, k_cache, v_cache

    def dense(
        self,
        x: jax.Array,
        k_cache: jax.Array,
        v_cache: jax.Array,
        positions: jax.Array,
        start: jax.Array,
        lengths: jax.Array,
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """A whole layer without experts; arguments as `attend_and_route`. Returns x, k_cache, v_cache."""
        h, k_cache, v_cache = self._attend_cached(x, k_cache, v_cache, positions, start, lengths)
        return self.feed_forward(h), k_cache, v_cache

    def attend(self, x: jax.Array, positions: jax.Array, mask: jax.Array) -> jax.Array:
        """Attention among the new tokens alone, plus residual; mask bool [B, T, T]."""
        q, k, v = self.self_attn.project(self.input_layernorm(x), positions)
        return x + self.self_attn.o_proj(grouped_attention(q, k, v, mask))

    def feed_forward(self, h: jax.Array) -> jax.Array:
        """The dense MLP of a layer without experts, plus residual."""
        return h + self.mlp(self.post_attention_layernorm(h))

    def route(self, h: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
        """Softmax over all experts in float32, the K best, their weights renormalised to sum to one.

        transformers renormalises in this family whatever `norm_topk_prob` says, so we do too.

        Args:
          h: [B, T, D] residual stream after attention.

        Returns:
          y [B, T, D], expert_ids int32 [B, T, K], expert_weights float32 [B, T, K], router_probs float32 [B, T, E].
        """
        y = self.post_attention_layernorm(h)
        kernel = self.router.kernel[...].astype(jnp.float32)
        logits = jnp.dot(y.astype(jnp.float32), kernel, precision=jax.lax.Precision.HIGHEST)
        probs = jax.nn.softmax(logits, axis=-1)
        best, ids = jax.lax.top_k(probs, self.config.num_experts_per_tok)
        return y, ids.astype(jnp.int32), best / best.sum(axis=-1, keepdims=True), probs

    def _attend_cached(
        self,
        x: jax.Array,
        k_cache: jax.Array,
        v_cache: jax.Array,
        positions: jax.Array,
        start: jax.Array,
        lengths: jax.Array,
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        batch, length, _ = x.shape
        room = k_cache.shape[1]
        q, k, v = self.self_attn.project(self.input_layernorm(x), positions)
        step = jnp.arange(length)
        place = start[:, None] + step
        # Padding is written nowhere: an index past the end is dropped.
        spot = (jnp.arange(batch)[:, None], jnp.where(step < lengths[:, None], place, room))
        k_cache = k_cache.at[spot].set(k.astype(k_cache.dtype), mode="drop")
        v_cache = v_cache.at[spot].set(v.astype(v_cache.dtype), mode="drop")
        seen = jnp.arange(room)
        mask = (seen <= place[..., None]) & (seen < (start + lengths)[:, None, None])
        attended = grouped_attention(q, k_cache.astype(q.dtype), v_cache.astype(q.dtype), mask)
        return x + self.self_attn.o_proj(attended), k_cache, v_cache


class Qwen3VLMoe(nnx.Module):
    """The model.

    Attributes:
      vision: the vision tower.
      embed_tokens, norm, lm_head: lm_head is None when the embeddings are tied.
      layers: DecoderLayer per layer.
      experts: Experts per layer; None for layers without, and for all when built `with_experts=False`.
    """

    def __init__(
        self,
        config: Qwen3VLMoeConfig,
        *,
        rngs: nnx.Rngs,
        dtype: Any = jnp.float32,
        with_experts: bool = True,
    ):
        text = config.text
        self.config = config
        self.dtype = jnp.dtype(dtype)
        self.vision = vision.VisionTower(config.vision, dtype=self.dtype, rngs=rngs)
        self.embed_tokens = nnx.Embed(
            text.vocab_size, text.hidden_size, dtype=self.dtype, param_dtype=self.dtype, rngs=rngs
        )
        indices = range(text.num_hidden_layers)
        self.layers = nnx.List([DecoderLayer(text, text.is_moe(i), dtype=self.dtype, rngs=rngs) for i in indices])
        self.experts = nnx.List(
            [Experts(text, dtype=self.dtype, rngs=rngs) if with_experts and text.is_moe(i) else None for i in indices]
        )
        self.norm = RMSNorm(text.hidden_size, text.rms_norm_eps, dtype=self.dtype)
        self.lm_head = (
            None
            if config.tie_word_embeddings
            else linear(text.hidden_size, text.vocab_size, bias=False, dtype=self.dtype, rngs=rngs)
        )

    def forward(
        self,
        input_ids: jax.Array,
        positions: jax.Array,
        lengths: jax.Array,
        image_embeds: jax.Array | None = None,
        deepstack: jax.Array | None = None,
        image_index: jax.Array | None = None,
    ) -> ForwardOutput:
        """The whole model on right-padded sequences, all experts at hand.

        Args:
          input_ids: int32 [B, T].
          positions: int32 [3, B, T], see `rope_positions`.
          lengths: int32 [B].
          image_embeds, deepstack: [N, D] and [n, N, D] from `vision_stage`.
          image_index: int32 [B, T], the image token of each position, -1 for text.
        """
        batch, length = input_ids.shape
        x = self.embed_stage(input_ids, image_embeds, image_index)
        step = jnp.arange(length)
        inside = step < lengths[:, None]
        mask = (step[:, None] >= step) & inside[:, None, :]
        chosen, probabilities = [], []
        for i, (layer, experts) in enumerate(zip(self.layers, self.experts, strict=True)):
            h = layer.attend(x, positions, mask)
            if experts is not None:
                y, ids, weights, probs = layer.route(h)
                ids = jnp.where(inside[..., None], ids, -1)
                top_k = ids.shape[-1]
                out = grouped_experts(
                    experts.gate_up[...],
                    experts.down[...],
                    y.reshape(-1, y.shape[-1]),
                    ids.reshape(-1, top_k),
                )
                x = combine(
                    h.reshape(batch * length, -1),
                    out.reshape(batch * length * top_k, -1),
                    weights.reshape(-1, top_k),
                ).reshape(h.shape)
                chosen.append(ids)
                probabilities.append(probs)
            else:
                x = layer.feed_forward(h)
            if deepstack is not None and image_index is not None and i < deepstack.shape[0]:
                x = self.add_deepstack(x, deepstack[i], image_index)
        return ForwardOutput(self.head_stage(x), jnp.stack(chosen, axis=1), jnp.stack(probabilities, axis=1))

    def vision_stage(self, pixel_values: jax.Array, where: vision.VisionPositions) -> tuple[jax.Array, jax.Array]:
        """Patches [G, Q, patch_dim] with their positions (`vision_inputs`) to [N, D] and DeepStack [n, N, D]."""
        return self.vision(pixel_values, where)

    def embed_stage(
        self, input_ids: jax.Array, image_embeds: jax.Array | None, image_index: jax.Array | None
    ) -> jax.Array:
        """Token embeddings [B, T, D] with image embeddings put in their places."""
        x = self.embed_tokens(input_ids)
        if image_embeds is None or image_index is None:
            return x
        taken = image_embeds[jnp.maximum(image_index, 0)].astype(x.dtype)
        return jnp.where((image_index >= 0)[..., None], taken, x)

    def add_deepstack(self, x: jax.Array, visual: jax.Array, image_index: jax.Array) -> jax.Array:
        """Adds one DeepStack level [N, D] at image positions; after decoder layer i < n comes level i."""
        taken = visual[jnp.maximum(image_index, 0)].astype(x.dtype)
        return x + jnp.where((image_index >= 0)[..., None], taken, 0)

    def head_stage(self, x: jax.Array) -> jax.Array:
        """Final norm and output projection: [..., D] -> float32 [..., V]."""
        kernel = self.embed_tokens.embedding[...].T if self.lm_head is None else self.lm_head.kernel[...]
        return jnp.dot(self.norm(x), kernel, preferred_element_type=jnp.float32)


def vision_inputs(
    config: Qwen3VLMoeConfig, pixel_values: np.ndarray, grid_thw: np.ndarray
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """See `vision.vision_inputs`."""
    return vision.vision_inputs(config.vision, pixel_values, grid_thw)


def same_size_positions(config: Qwen3VLMoeConfig, high: int, wide: int) -> dict[str, np.ndarray | None]:
    """See `vision.same_size_positions`."""
    return vision.same_size_positions(config.vision, high, wide)
