"""The compiled stages of one structure of layer, and what passes between them.

What a stage has been given to overwrite comes first in what it returns: XLA on CUDA has given wrong results where
donated state came behind other outputs (jax#39625). Axes: B sequences, T new tokens, S cache length, N = B * T,
K top-k, D model width, E experts, H heads of keys and values, Dh head width.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Float, Int

from expertflow_jax.models import experts

Weights = tuple[jax.Array, ...]
KeysValues = tuple[Float[jax.Array, "B S H Dh"], Float[jax.Array, "B S H Dh"]]


class Uncombined(NamedTuple):
    """A residual stream to which the outputs of a layer's experts are still to be added; the next layer does it."""

    h: Float[jax.Array, "B T D"]
    out: Float[jax.Array, "R D"]  # R = N * K + 1
    weights: Float[Any, "B T K"]  # NumPy's if a miss policy has changed them


class Attended(NamedTuple):
    """What attention and router of an MoE layer say, and in a step of one token each what its experts begin with."""

    kv: KeysValues
    out: Float[jax.Array, "R D"] | None  # zeros, R = N * K + 1
    h: Float[jax.Array, "B T D"]  # the residual stream
    y: Float[jax.Array, "B T D"]  # what experts read
    ids: Int[jax.Array, "B T K"]  # experts, -1 on padding
    weights: Float[jax.Array, "B T K"]
    probs: Float[jax.Array, "B T E"]


# Reshapes are inside: each would be a dispatch of its own, and there are many to a step.
def combine(h: jax.Array, out: jax.Array, weights: jax.Array) -> jax.Array:
    """The parts of `Uncombined` -> [B, T, D]."""
    flat = experts.combine(h.reshape(-1, h.shape[-1]), out, weights.reshape(-1, weights.shape[-1]))
    return flat.reshape(h.shape)


class LayerStages:
    """Compiled functions of one structure of layer; each takes the layer's weights, `treedef` puts them together."""

    def __init__(self, graphdef: Any, treedef: Any):
        def layer(weights: Weights) -> Any:
            return nnx.merge(graphdef, jax.tree.unflatten(treedef, weights))

        # The barriers keep the bits of stages that are called one by one.
        def attend(weights: Weights, state: tuple[KeysValues, Any], x: Any, *where: jax.Array) -> Attended:
            kv, out = state
            if out is not None:
                h, shares = x
                x = jax.lax.optimization_barrier(combine(h, out, shares))
            h, y, ids, shares, probs, k, v = layer(weights).attend_and_route(x, *kv, *where)
            zeros = jnp.zeros((ids.size + 1, y.shape[-1]), y.dtype) if x.shape[1] == 1 else None
            return Attended((k, v), zeros, h, y, ids, shares, probs)

        def dense(weights: Weights, kv: KeysValues, x: Any, *where: jax.Array) -> tuple[KeysValues, jax.Array]:
            if isinstance(x, Uncombined):
                x = jax.lax.optimization_barrier(combine(*x))
            x, k, v = layer(weights).dense(x, *kv, *where)
            return (k, v), x

        self.treedef = treedef
        self.attend = jax.jit(attend, donate_argnums=1)
        self.dense = jax.jit(dense, donate_argnums=1)
        self.route = jax.jit(lambda weights, h: layer(weights).route(h))
