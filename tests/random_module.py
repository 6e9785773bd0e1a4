"""Modules with random parameters made by NumPy: each of JAX's initialisers compiles a program for every shape."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from flax import nnx


def random_module(build: Callable[..., Any], *args: Any, seed: int = 0, **options: Any) -> Any:
    """`build(*args, rngs=..., **options)` with normal weights of variance 1 / inputs, biases 0 and scales 1."""
    module = nnx.eval_shape(lambda: build(*args, rngs=nnx.Rngs(0), **options))
    rng = np.random.default_rng(seed)

    def fill(path: tuple, leaf: jax.ShapeDtypeStruct) -> jax.Array:
        name = jax.tree_util.keystr(path).split("'")[-2]  # "['layers'][0]['router']['kernel'].value"
        if name in ("scale", "bias"):
            values = np.full(leaf.shape, name == "scale", np.float32)
        else:
            inputs = leaf.shape[-1] if name == "embedding" else leaf.shape[-2]
            values = rng.standard_normal(leaf.shape, np.float32) / np.float32(np.sqrt(inputs))
        return jax.device_put(values.astype(leaf.dtype))

    nnx.update(module, jax.tree_util.tree_map_with_path(fill, nnx.state(module)))
    return module
