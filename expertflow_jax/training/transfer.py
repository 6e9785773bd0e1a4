"""Begins with the parameters of a model that was trained on another benchmark's words."""

from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from tokenizers import Tokenizer

from expertflow_jax import checkpoints
from expertflow_jax.errors import InputError
from expertflow_jax.models.qwen3_vl_moe import Qwen3VLMoe


def transfer(module: Qwen3VLMoe, tokenizer: Tokenizer, path: Path) -> nnx.State:
    """Parameters of the checkpoint at `path` in the shapes of `module`.

    Tokens that both tokenizers know, a capital letter aside, keep their rows of the embedding and the head; those of
    other tokens stay as they are in `module`.

    Raises:
      InputError: the checkpoint is of another architecture.
    """
    known = Tokenizer.from_file(str(path / "tokenizer.json")).get_vocab()
    shared = [
        (number, known.get(token, known.get(token.capitalize())))
        for token, number in tokenizer.get_vocab().items()
        if token in known or token.capitalize() in known
    ]
    here, there = np.array(shared).T  # int [shared tokens] each
    trained = dict(nnx.to_flat_state(nnx.state(checkpoints.load_model(path, jnp.float32))))
    values: dict[Any, Any] = {}
    for name, leaf in nnx.to_flat_state(nnx.state(module)):
        theirs = trained[name][...] if name in trained else None
        if theirs is not None and name == ("embed_tokens", "embedding"):
            values[name] = leaf[...].at[here].set(theirs[there])
        elif theirs is not None and name == ("lm_head", "kernel"):
            values[name] = leaf[...].at[:, here].set(theirs[:, there])
        elif theirs is not None and theirs.shape == leaf[...].shape:
            values[name] = theirs
        else:
            raise InputError(f"config key start: {path.name} has another shape at {'.'.join(map(str, name))}")
    return nnx.from_flat_state([(name, nnx.Param(value)) for name, value in values.items()])
