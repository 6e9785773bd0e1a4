"""A decode step in one call, where all experts are on the device: nobody waits for the host to read what was chosen.

The same rows of the same experts in the same shapes as `rows.py` gives them, and the same stages with barriers between
them, so the results are the same to the bit. Every expert in every shape is a branch of its own, since experts in
separate arrays cannot be indexed and stacking them would copy them; so this is for small models and few tokens, whose
steps are so short that a call per layer would be felt. Axes: B sequences, T tokens, N = B * T, K top-k, L MoE layers,
E experts, C rows of one expert (padded), D model width.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from expertflow_jax.inference.rows import paddings
from expertflow_jax.models.experts import BufferLayout, Parts, combine, run_expert

MOST_BRANCHES = 64  # of all layers together: compiling one takes about 0.1 s


def can_select(layout: BufferLayout, num_layers: int, num_experts: int, tokens: int) -> bool:
    """Whether a step of N tokens through L MoE layers may pick among E experts on the device.

    Experts that have to be unpacked into scratch memory may not: branches would unpack each on its own.
    """
    return layout.scratch_bytes == 0 and num_layers * num_experts * len(paddings(tokens)) <= MOST_BRANCHES


def whole_step(stages: Any, run: Callable[[Any, jax.Array, jax.Array], jax.Array]) -> Callable[..., tuple[Any, ...]]:
    """A decode step of all layers as one jitted function.

    Args:
      stages: `Stages`, of which it uses the attention and the router.
      run: (one layer's experts in any form, y [N, D], ids int32 [N, K]) -> their outputs [N * K or N * K + 1, D].

    Returns:
      a function (weights of each layer, experts of each MoE layer, keys and values of each layer (donated),
      x [B, T, D], positions, start, lengths) -> keys and values, final hidden states [B, T, D], ids int32 [B, T, K] of
      each MoE layer that ran.
    """
    runs = stages.config.text.decode_layers
    compiled, is_moe = list(stages.layer_stages), list(stages.is_moe)  # not `stages`, which would hold itself

    def step(weights: Any, experts: Any, kv: Any, x: jax.Array, *where: jax.Array) -> tuple[Any, ...]:
        kv, chosen, moe_layer = list(kv), [], 0
        for layer, moe in enumerate(is_moe):
            if runs[layer] and moe:
                attended = compiled[layer].attend(weights[layer], (kv[layer], None), x, *where)
                attended = jax.lax.optimization_barrier(attended._replace(out=None))
                kv[layer], _, h, y, ids, shares, _ = attended
                ids_NxK = ids.reshape(-1, ids.shape[-1])
                out = run(experts[moe_layer], y.reshape(-1, y.shape[-1]), ids_NxK)
                mixed = combine(h.reshape(-1, h.shape[-1]), out, shares.reshape(ids_NxK.shape))
                x = jax.lax.optimization_barrier(mixed.reshape(h.shape))
                chosen.append(ids)
            elif runs[layer]:
                outputs = compiled[layer].dense(weights[layer], kv[layer], x, *where)
                kv[layer], x = jax.lax.optimization_barrier(outputs)
            moe_layer += moe
        return kv, x, chosen

    return jax.jit(step, donate_argnums=2)


def run_selected(layout: BufferLayout, buffers: Sequence[Parts], y: jax.Array, expert_ids: jax.Array) -> jax.Array:
    """What `run_expert_group` writes for all chosen experts together.

    Args:
      layout: of the experts.
      buffers: E times the arrays of one expert.
      y: [N, D] MoE inputs.
      expert_ids: int32 [N, K], -1 where there is nothing to compute.

    Returns:
      [N * K + 1, D], zero in rows of no expert; the last row took the padding.
    """
    num_experts, (tokens, top_k) = len(buffers), expert_ids.shape
    nothing, sizes = tokens * top_k, paddings(tokens)
    key = jnp.where(expert_ids < 0, num_experts, expert_ids).reshape(-1)  # [N * K]
    counts = jnp.zeros(num_experts + 1, jnp.int32).at[key].add(1)[:num_experts]  # [E]
    starts = jnp.cumsum(counts) - counts  # [E]
    order = jnp.argsort(key, stable=True).astype(jnp.int32)  # [N * K], as `ExpertRows.order`
    order = jnp.concatenate([order, jnp.full(sizes[-1], nothing, jnp.int32)])
    wanted = jnp.argsort(counts == 0, stable=True)  # [E], experts with rows first

    def branch(parts: Parts, size: int) -> Callable[[jax.Array, jax.Array, jax.Array], jax.Array]:
        def run(out: jax.Array, start: jax.Array, count: jax.Array) -> jax.Array:
            rows = jax.lax.dynamic_slice(order, (start,), (size,))
            rows = jnp.where(jnp.arange(size) < count, rows, nothing)  # [C]
            taken = y.at[rows // top_k].get(mode="clip")
            return out.at[rows].set(run_expert(taken, *layout.unpack(parts), layout.kind).astype(out.dtype))

        return run

    branches = [branch(parts, size) for size in sizes for parts in buffers]

    def one(place: jax.Array, out: jax.Array) -> jax.Array:
        expert = wanted[place]
        count = counts[expert]
        size_index = jnp.searchsorted(jnp.array(sizes), count)
        return jax.lax.switch(size_index * num_experts + expert, branches, out, starts[expert], count)

    return jax.lax.fori_loop(0, (counts > 0).sum(), one, jnp.zeros((nothing + 1, y.shape[-1]), y.dtype))
