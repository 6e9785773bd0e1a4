"""The layers of all decoder families: grouped-query attention with rotary positions, a top-k router or a dense MLP,
perhaps a shared expert; `DecoderConfig` says which.

A layer holds everything but its experts, so that a runtime may fetch them between router and experts. Axes: B
sequences, T tokens, S cache length, E experts, K top-k, D model width, F expert width, H/Hkv heads, Dh head width.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from expertflow_jax.models import rope
from expertflow_jax.models.decoder_config import DecoderConfig
from expertflow_jax.models.experts import combine, grouped_experts
from expertflow_jax.models.layers import GatedMLP, RMSNorm, grouped_attention, linear


class Experts(nnx.Module):
    """The experts of one layer, stacked: gate_up [E, D, 2F] (gate columns, then up) and down [E, F, D]."""

    def __init__(self, config: DecoderConfig, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        layout = config.expert_layout(dtype)
        e, d, f = config.num_experts, layout.d_model, layout.d_ff
        self.kind = layout.kind
        init = jax.nn.initializers.lecun_normal(batch_axis=0)
        self.gate_up = nnx.Param(init(rngs.params(), (e, d, layout.width), dtype))
        self.down = nnx.Param(init(rngs.params(), (e, f, d), dtype))

    def __call__(self, h: jax.Array, y: jax.Array, expert_ids: jax.Array, expert_weights: jax.Array) -> jax.Array:
        """h [B, T, D] (residual), y [B, T, D], ids and weights [B, T, K] as the layer gives them -> [B, T, D]."""
        flat = y.reshape(-1, y.shape[-1])
        top_k = expert_ids.shape[-1]
        out = grouped_experts(self.gate_up[...], self.down[...], flat, expert_ids.reshape(-1, top_k), self.kind)
        mixed = combine(h.reshape(flat.shape), out.reshape(-1, flat.shape[-1]), expert_weights.reshape(-1, top_k))
        return mixed.reshape(h.shape)


class Attention(nnx.Module):
    """Grouped-query attention; where the family has it, RMS norm of queries and keys, then the rotation."""

    def __init__(self, config: DecoderConfig, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.config = config
        d, head, bias = config.hidden_size, config.head_dim, config.qkv_bias
        queries, keys = config.num_attention_heads * head, config.num_key_value_heads * head
        self.q_proj = linear(d, queries, bias=bias, dtype=dtype, rngs=rngs)
        self.k_proj = linear(d, keys, bias=bias, dtype=dtype, rngs=rngs)
        self.v_proj = linear(d, keys, bias=bias, dtype=dtype, rngs=rngs)
        self.o_proj = linear(queries, d, bias=config.o_bias, dtype=dtype, rngs=rngs)
        if config.qk_norm != "none":
            per_head = config.qk_norm == "head"
            self.q_norm = RMSNorm(head if per_head else queries, config.rms_norm_eps, dtype=dtype)
            self.k_norm = RMSNorm(head if per_head else keys, config.rms_norm_eps, dtype=dtype)

    def project(self, x: jax.Array, positions: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """x [B, T, D] -> rotated q [B, T, H, Dh], rotated k and plain v [B, T, Hkv, Dh]."""
        config = self.config
        angles, scale = rope.rope_angles(positions, config)
        shape = (*x.shape[:2], -1, config.head_dim)
        q, k, v = self.q_proj(x), self.k_proj(x), self.v_proj(x)
        if config.qk_norm == "projection":
            q, k = self.q_norm(q), self.k_norm(k)
        if config.clip_qkv is not None:
            q, k, v = (jnp.clip(part, -config.clip_qkv, config.clip_qkv) for part in (q, k, v))
        q, k, v = q.reshape(shape), k.reshape(shape), v.reshape(shape)
        if config.qk_norm == "head":
            q, k = self.q_norm(q), self.k_norm(k)
        return rope.rotate(q, angles, scale), rope.rotate(k, angles, scale), v


class DecoderLayer(nnx.Module):
    """One decoder layer without its experts: norms, attention, and either a router (with, in some families, an expert
    that all tokens share) or a dense MLP."""

    def __init__(self, config: DecoderConfig, index: int, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        """Args: index: among all layers."""
        self.config = config
        self.is_moe = config.is_moe(index)
        self.window = config.window(index)
        width, act = config.hidden_size, config.hidden_act
        self.input_layernorm = RMSNorm(width, config.rms_norm_eps, dtype=dtype)
        self.post_attention_layernorm = RMSNorm(width, config.rms_norm_eps, dtype=dtype)
        self.self_attn = Attention(config, dtype=dtype, rngs=rngs)
        if not self.is_moe:
            self.mlp = GatedMLP(width, config.intermediate_size, activation=act, dtype=dtype, rngs=rngs)
            return
        self.router = linear(width, config.num_experts, bias=False, dtype=dtype, rngs=rngs)
        if shared := config.shared_expert_intermediate_size:
            self.shared_expert = GatedMLP(width, shared, activation=act, dtype=dtype, rngs=rngs)
            if config.shared_expert_gate:
                self.shared_expert_gate = linear(width, 1, bias=False, dtype=dtype, rngs=rngs)

    def attend_and_route(
        self,
        x: jax.Array,
        k_cache: jax.Array,
        v_cache: jax.Array,
        positions: jax.Array,
        start: jax.Array,
        lengths: jax.Array,
    ) -> tuple[jax.Array, ...]:
        """Attention over the cache and the new tokens, then the router, then the shared expert.

        Args:
          x: [B, T, D] residual stream.
          k_cache, v_cache: [B, S, Hkv, Dh].
          positions: int32 [3, B, T].
          start: int32 [B], tokens in the cache before this call.
          lengths: int32 [B], valid new tokens (right padded).

        Returns:
          h [B, T, D] (residual stream after attention and shared expert), y [B, T, D] (normed MoE input), expert_ids
          int32 [B, T, K] (-1 on padding), expert_weights float32 [B, T, K], router_probs float32 [B, T, E], k_cache,
          v_cache.
        """
        h, k_cache, v_cache = self._attend_cached(x, k_cache, v_cache, positions, start, lengths)
        inside = jnp.arange(x.shape[1]) < lengths[:, None]
        return *self.route_and_share(h, inside), k_cache, v_cache

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
        """Attention among the new tokens alone, plus residual; mask bool [B, T, T], causal, without padding."""
        q, k, v = self.self_attn.project(self.input_layernorm(x), positions)
        if self.window:
            step = jnp.arange(x.shape[1])
            mask = mask & (step > step[:, None] - self.window)
        return x + self.self_attn.o_proj(grouped_attention(q, k, v, mask))

    def feed_forward(self, h: jax.Array) -> jax.Array:
        """The dense MLP of a layer without experts, plus residual."""
        return h + self.mlp(self.post_attention_layernorm(h))

    def route(self, h: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
        """Softmax over all experts in float32, the K best, their weights perhaps renormalised to sum to one.

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
        if self.config.norm_topk_prob:
            best = best / best.sum(axis=-1, keepdims=True)
        return y, ids.astype(jnp.int32), best, probs

    def route_and_share(self, h: jax.Array, inside: jax.Array) -> tuple[jax.Array, ...]:
        """What experts need of the residual stream `h` [B, T, D]; inside bool [B, T], false on padding.

        Returns:
          h with the shared expert added, and y, expert_ids (-1 on padding), expert_weights, router_probs of `route`.
        """
        y, ids, weights, probs = self.route(h)
        if self.config.shared_expert_intermediate_size:
            shared = self.shared_expert(y)
            if self.config.shared_expert_gate:
                shared = jax.nn.sigmoid(self.shared_expert_gate(y)) * shared
            h = h + shared
        return h, y, jnp.where(inside[..., None], ids, -1), weights, probs

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
        if self.window:
            mask = mask & (seen > place[..., None] - self.window)
        attended = grouped_attention(q, k_cache.astype(q.dtype), v_cache.astype(q.dtype), mask)
        return x + self.self_attn.o_proj(attended), k_cache, v_cache
