"""Where training begins: with all parameters new, or with the dense ones of a trained model, after sparse upcycling.

Sparse upcycling (2212.05055) keeps everything outside the experts of a trained model and makes the experts anew. Here
routers, experts and shared experts are new, so that a model of other experts learns in a fraction of the steps.
"""

import jax.numpy as jnp
import numpy as np
from flax import nnx

from expertflow_jax.checkpoints import load_dense_and_experts
from expertflow_jax.errors import InputError
from expertflow_jax.locate import locate

_NEW = {"router", "shared_expert", "shared_expert_gate"}


def with_dense_parameters(params: nnx.State, model: str) -> nnx.State:
    """`params` with every dense parameter but routers and shared experts as in a trained model.

    Args:
      params: of a freshly built module, experts included.
      model: a committed model's name, a checkpoint directory, or a hub id, of the same family and dense shapes.

    Raises:
      InputError: the model lacks such a parameter or has another shape of it, or see `load_dense_and_experts`.
    """
    _, module, _ = load_dense_and_experts(locate(model, "warm_start"), jnp.float32)
    trained = dict(nnx.to_flat_state(nnx.state(module)))
    flat = dict(nnx.to_flat_state(params))
    for path, leaf in flat.items():
        if path[0] == "experts" or _NEW & set(map(str, path)):
            continue
        if path not in trained or trained[path].shape != leaf.shape:
            name = ".".join(map(str, path))
            raise InputError(
                f"warm_start: {model} has no {name} of shape {leaf.shape}; name a model of the same widths"
            )
        flat[path] = leaf.replace(jnp.asarray(np.asarray(trained[path][...])))
    return nnx.from_flat_state(flat)
