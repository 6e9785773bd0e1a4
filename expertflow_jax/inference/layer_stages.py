"""The compiled stages of one structure of layer, and what passes between them.

What a stage has been given to overwrite comes first in what it returns: XLA on CUDA has given wrong results where
donated state came behind other outputs (jax#39625). Axes: B sequences, T new tokens, S cache length, N = B * T,
K top-k, D model width, E experts, H heads of keys and values, Dh head width.
"""

from typing import Any, NamedTuple

import jax
from flax import nnx
from jaxtyping import Float, Int

Weights = tuple[jax.Array, ...]
KeysValues = tuple[Float[jax.Array, "B S H Dh"], Float[jax.Array, "B S H Dh"]]


class Attended(NamedTuple):
    """What attention and router of an MoE layer say."""

    kv: KeysValues
    h: Float[jax.Array, "B T D"]  # the residual stream
    y: Float[jax.Array, "B T D"]  # what experts read
    ids: Int[jax.Array, "B T K"]  # experts, -1 on padding
    weights: Float[jax.Array, "B T K"]
    probs: Float[jax.Array, "B T E"]


class LayerStages:
    """Compiled functions of one structure of layer; each takes the layer's weights, `treedef` puts them together."""

    def __init__(self, graphdef: Any, treedef: Any):
        def layer(weights: Weights) -> Any:
            return nnx.merge(graphdef, jax.tree.unflatten(treedef, weights))

        def attend(weights: Weights, kv: KeysValues, x: jax.Array, *where: jax.Array) -> Attended:
            *outputs, k, v = layer(weights).attend_and_route(x, *kv, *where)
            return Attended((k, v), *outputs)

        def dense(weights: Weights, kv: KeysValues, x: jax.Array, *where: jax.Array) -> tuple[KeysValues, jax.Array]:
            x, k, v = layer(weights).dense(x, *kv, *where)
            return (k, v), x

        self.treedef = treedef
        self.attend = jax.jit(attend, donate_argnums=1)
        self.dense = jax.jit(dense, donate_argnums=1)
        self.route = jax.jit(lambda weights, h: layer(weights).route(h))
