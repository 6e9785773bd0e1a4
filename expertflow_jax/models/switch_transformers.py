"""Switch Transformers: an encoder and a decoder in one list of layers, each of which works on its own stack's tokens.

A sequence is the encoder's tokens, then the decoder's; `positions` are below 0 in the encoder and count from 0 in the
decoder (`SwitchConfig.stack_positions`). A decoder layer's cache holds, at the places of encoder tokens, keys and
values of the encoder's output, and at its own tokens' places those of its self-attention. Axes: B sequences, T new
tokens, S cache length (0 in the encoder), E experts, D model width, H heads, Dh head width, V vocabulary.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from expertflow_jax.models.causal_lm import CausalLM, ForwardOutput
from expertflow_jax.models.decoder import Experts
from expertflow_jax.models.layers import ACTIVATIONS, MASKED, RMSNorm, linear
from expertflow_jax.models.switch_config import SwitchConfig, SwitchStacks


class Projections(nnx.Module):
    """Queries, keys, values and output of one attention, without biases."""

    def __init__(self, config: SwitchStacks, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.width = config.head_dim
        inner = config.num_attention_heads * config.head_dim
        self.q, self.k, self.v = (
            linear(config.hidden_size, inner, bias=False, dtype=dtype, rngs=rngs) for _ in range(3)
        )
        self.o = linear(inner, config.hidden_size, bias=False, dtype=dtype, rngs=rngs)

    def queries(self, x: jax.Array) -> jax.Array:
        """[B, T, D] -> [B, T, H, Dh]."""
        return self.q(x).reshape(*x.shape[:2], -1, self.width)

    def keys_values(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """[B, T, D] -> twice [B, T, H, Dh]."""
        shape = (*x.shape[:2], -1, self.width)
        return self.k(x).reshape(shape), self.v(x).reshape(shape)

    def attend(self, q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array, bias: jax.Array | None) -> jax.Array:
        """Scores are not scaled, and in float32; k, v [B, S, H, Dh], mask bool [B, T, S], bias [B, H, T, S]."""
        scores = jnp.einsum("bthd,bshd->bhts", q, k.astype(q.dtype), preferred_element_type=jnp.float32)
        scores = scores if bias is None else scores + bias
        weights = jax.nn.softmax(jnp.where(mask[:, None], scores, MASKED), axis=-1).astype(q.dtype)
        return self.o(jnp.einsum("bhts,bshd->bthd", weights, v.astype(q.dtype)).reshape(*q.shape[:2], -1))


def position_bucket(distance: jax.Array, config: SwitchStacks, *, both_sides: bool) -> jax.Array:
    """Bucket of a key's place less the query's, as T5 has it: exact when near, logarithmic further away."""
    buckets, first = config.buckets, jnp.zeros_like(distance)
    if both_sides:
        buckets //= 2
        first = jnp.where(distance > 0, buckets, 0)
        distance = jnp.abs(distance)
    else:
        distance = jnp.maximum(-distance, 0)
    exact = buckets // 2
    ratio = jnp.log(jnp.maximum(distance, 1).astype(jnp.float32) / exact)
    far = exact + (ratio / float(np.log(config.max_distance / exact)) * (buckets - exact)).astype(jnp.int32)
    return first + jnp.where(distance < exact, distance, jnp.minimum(far, buckets - 1))


class DenseFeedForward(nnx.Module):
    """The feed-forward block of layers without experts: two matrices."""

    def __init__(self, config: SwitchStacks, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.activation = config.hidden_act
        self.wi = linear(config.hidden_size, config.intermediate_size, bias=False, dtype=dtype, rngs=rngs)
        self.wo = linear(config.intermediate_size, config.hidden_size, bias=False, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.wo(ACTIVATIONS[self.activation](self.wi(x)))


class SwitchLayer(nnx.Module):
    """One layer of either stack without its experts; the interface of `decoder.DecoderLayer`."""

    def __init__(self, config: SwitchStacks, index: int, bias: nnx.Embed, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        """
        Args:
          index: among the layers of both stacks.
          bias: of relative positions, one for all layers of a stack.
        """
        self.config = config
        self.is_moe, self.decodes = config.is_moe(index), config.decodes(index)
        width, eps = config.hidden_size, config.rms_norm_eps
        self.position_bias = bias
        self.self_norm = RMSNorm(width, eps, dtype=dtype)
        self.self_attention = Projections(config, dtype=dtype, rngs=rngs)
        if self.decodes:
            if index == config.encoder_layers:  # the decoder begins: what the encoder hands over is normed
                self.encoder_norm = RMSNorm(width, eps, dtype=dtype)
            self.cross_norm = RMSNorm(width, eps, dtype=dtype)
            self.cross_attention = Projections(config, dtype=dtype, rngs=rngs)
        self.feed_forward_norm = RMSNorm(width, eps, dtype=dtype)
        if self.is_moe:
            self.router = linear(width, config.num_experts, bias=config.router_bias, dtype=dtype, rngs=rngs)
        else:
            self.mlp = DenseFeedForward(config, dtype=dtype, rngs=rngs)

    def attend_and_route(
        self, x: jax.Array, k_cache: jax.Array, v_cache: jax.Array, positions: jax.Array, *where: jax.Array
    ) -> tuple[jax.Array, ...]:
        """See `DecoderLayer.attend_and_route`; tokens of the other stack, and those beyond an expert's capacity, have
        expert -1."""
        h, of_stack, k_cache, v_cache = self._attend(x, k_cache, v_cache, positions, *where)
        y, ids, weights, probs = self.route(h)
        # The capacity holds for each sequence of a step; tokens of the other stack do not count.
        chosen = jax.nn.one_hot(ids[..., 0], self.config.num_experts, dtype=jnp.int32) * of_stack[..., None]
        rank = (jnp.cumsum(chosen, axis=1) * chosen).sum(-1)
        within = of_stack & (rank <= self.config.expert_capacity)
        return h, y, jnp.where(within[..., None], ids, -1), weights, probs, k_cache, v_cache

    def dense(
        self, x: jax.Array, k_cache: jax.Array, v_cache: jax.Array, positions: jax.Array, *where: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """See `DecoderLayer.dense`."""
        h, of_stack, k_cache, v_cache = self._attend(x, k_cache, v_cache, positions, *where)
        out = h + self.mlp(self.feed_forward_norm(h))
        return jnp.where(of_stack[..., None], out, h), k_cache, v_cache

    def route(self, h: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
        """Softmax in float32, rounded to the model's dtype as the reference does, and the best expert.

        Args:
          h: [B, T, D] residual stream after attention.

        Returns:
          y [B, T, D], expert_ids int32 [B, T, 1], expert_weights float32 [B, T, 1], router_probs float32 [B, T, E].
        """
        y = self.feed_forward_norm(h)
        kernel = self.router.kernel[...].astype(jnp.float32)
        logits = jnp.dot(y.astype(jnp.float32), kernel, precision=jax.lax.Precision.HIGHEST)
        if self.router.bias is not None:
            logits = logits + self.router.bias[...].astype(jnp.float32)
        probs = jax.nn.softmax(logits, axis=-1).astype(h.dtype).astype(jnp.float32)
        best = jnp.argmax(probs, axis=-1, keepdims=True).astype(jnp.int32)
        return y, best, jnp.take_along_axis(probs, best, axis=-1), probs

    def _attend(
        self,
        x: jax.Array,
        k_cache: jax.Array,
        v_cache: jax.Array,
        positions: jax.Array,
        start: jax.Array,
        lengths: jax.Array,
    ) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
        """The residual stream after attention, which tokens are this stack's (bool [B, T]), and the cache."""
        batch, length, _ = x.shape
        step = jnp.arange(length)
        inside = step < lengths[:, None]
        place = start[:, None] + step
        encoded = (start - positions[0, :, 0])[:, None]  # [B, 1], tokens of the encoder
        of_stack = inside & ((place >= encoded) == self.decodes)
        normed = self.self_norm(x)
        if not self.decodes:
            k, v = self.self_attention.keys_values(normed)
            mask = jnp.broadcast_to(of_stack[:, None], (batch, length, length))
            attended = self.self_attention.attend(
                self.self_attention.queries(normed), k, v, mask, self._bias(place, place)
            )
            return jnp.where(of_stack[..., None], x + attended, x), of_stack, k_cache, v_cache
        room = k_cache.shape[1]
        k, v = self.self_attention.keys_values(normed)
        if length > 1:  # a step of one token decodes: the encoder's keys are in the cache
            if hasattr(self, "encoder_norm"):
                x = jnp.where((inside & ~of_stack)[..., None], self.encoder_norm(x), x)
            cross = self.cross_attention.keys_values(x)
            own = of_stack[..., None, None]
            k, v = jnp.where(own, k, cross[0]), jnp.where(own, v, cross[1])
        # Padding is written nowhere: an index past the end is dropped.
        spot = (jnp.arange(batch)[:, None], jnp.where(inside, place, room))
        k_cache = k_cache.at[spot].set(k.astype(k_cache.dtype), mode="drop")
        v_cache = v_cache.at[spot].set(v.astype(v_cache.dtype), mode="drop")
        seen = jnp.broadcast_to(jnp.arange(room), (batch, room))
        before = (seen < encoded)[:, None]
        mask = (seen[:, None] <= place[..., None]) & ~before
        bias = self._bias(place, seen)
        queries = self.self_attention.queries(normed)
        h = x + self.self_attention.attend(queries, k_cache, v_cache, mask, bias)
        queries = self.cross_attention.queries(self.cross_norm(h))
        mask = jnp.broadcast_to(before, mask.shape)
        h = h + self.cross_attention.attend(queries, k_cache, v_cache, mask, None)
        return jnp.where(of_stack[..., None], h, x), of_stack, k_cache, v_cache

    def _bias(self, queries: jax.Array, keys: jax.Array) -> jax.Array:
        """Places int32 [B, T] and [B, S] -> float32 [B, H, T, S]."""
        distance = keys[:, None] - queries[..., None]
        bucket = position_bucket(distance, self.config, both_sides=not self.decodes)
        return self.position_bias(bucket).astype(jnp.float32).transpose(0, 3, 1, 2)


class SwitchTransformers(CausalLM):
    """The model; its interface is that of `CausalLM`.

    Attributes:
      embed_tokens: of the encoder, and where there is one table of the decoder as well.
      decoder_embed_tokens, lm_head: None where there is one table.
    """

    def __init__(self, config: SwitchConfig, *, rngs: nnx.Rngs, dtype: Any = jnp.float32, with_experts: bool = True):
        nnx.Module.__init__(self)
        text, tied = config.text, config.one_table
        self.config, self.dtype = config, jnp.dtype(dtype)

        def table(rows: int, width: int) -> nnx.Embed:
            return nnx.Embed(rows, width, dtype=self.dtype, param_dtype=self.dtype, rngs=rngs)

        self.embed_tokens = table(text.vocab_size, text.hidden_size)
        self.decoder_embed_tokens = None if tied else table(text.vocab_size, text.hidden_size)
        biases = [table(text.buckets, text.num_attention_heads) for _ in range(2)]
        indices = range(text.num_hidden_layers)
        self.layers = nnx.List(
            [SwitchLayer(text, i, biases[text.decodes(i)], dtype=self.dtype, rngs=rngs) for i in indices]
        )
        self.experts = nnx.List(
            [Experts(text, dtype=self.dtype, rngs=rngs) if with_experts and text.is_moe(i) else None for i in indices]
        )
        self.norm = RMSNorm(text.hidden_size, text.rms_norm_eps, dtype=self.dtype)
        self.lm_head = (
            None if tied else linear(text.hidden_size, text.vocab_size, bias=False, dtype=self.dtype, rngs=rngs)
        )

    def embed_stage(
        self, input_ids: jax.Array, image_embeds: jax.Array | None, embed_index: jax.Array | None
    ) -> jax.Array:
        """Token embeddings [B, T, D]; embed_index int32 [B, T] is -1 on the encoder's tokens, None for decode steps."""
        if self.decoder_embed_tokens is None:
            return self.embed_tokens(input_ids)
        decoded = self.decoder_embed_tokens(input_ids)
        if embed_index is None:
            return decoded
        return jnp.where((embed_index < 0)[..., None], self.embed_tokens(input_ids), decoded)

    def head_stage(self, x: jax.Array) -> jax.Array:
        """Final norm, scaled where config.json ties the head, and output projection: [..., D] -> float32 [..., V]."""
        if not self.config.tie_word_embeddings:
            return super().head_stage(x)
        kernel = self.embed_tokens.embedding[...].T if self.lm_head is None else self.lm_head.kernel[...]
        scaled = self.norm(x) * self.config.text.hidden_size**-0.5
        return jnp.dot(scaled, kernel, preferred_element_type=jnp.float32)

    def forward(
        self,
        input_ids: jax.Array,
        positions: jax.Array,
        lengths: jax.Array,
        image_embeds: jax.Array | None = None,
        deepstack: jax.Array | None = None,
        embed_index: jax.Array | None = None,
    ) -> ForwardOutput:
        """Both stacks on right-padded sequences, all experts at hand. Arguments as `CausalLM.forward`; logits mean
        something at the decoder's tokens."""
        x = self.embed_stage(input_ids, None, embed_index)
        chosen, probabilities = [], []
        start = jnp.zeros_like(lengths)
        text = self.config.text
        for i, (layer, experts) in enumerate(zip(self.layers, self.experts, strict=True)):
            room = input_ids.shape[1] if text.cached_layers[i] else 0
            cache = jnp.zeros((input_ids.shape[0], room, text.num_key_value_heads, text.head_dim), self.dtype)
            if experts is not None:
                h, y, ids, weights, probs, *_ = layer.attend_and_route(x, cache, cache, positions, start, lengths)
                x = experts(h, y, ids, weights)
                chosen.append(ids)
                probabilities.append(probs)
            else:
                x, *_ = layer.dense(x, cache, cache, positions, start, lengths)
        return ForwardOutput(self.head_stage(x), jnp.stack(chosen, axis=1), jnp.stack(probabilities, axis=1))
