"""Device memory of a block of batches on a full-size model, from its config.json alone."""

import dataclasses
import functools
from pathlib import Path

import numpy as np
from flax import nnx

from expertflow_jax.inference.memory import RequestSize, plan_request
from expertflow_jax.inference.planning import ModelSizes
from expertflow_jax.offload.budget import MemoryPlan
from expertflow_jax.predictor.model import PredictorConfig, RoutingPathPredictor
from expertflow_jax.predictor.runtime import Predictor


@functools.cache
def sizes_of(directory: str) -> ModelSizes:
    """Of the model whose config.json lies there.

    Raises:
      InputError: there is none, or none that is supported.
    """
    return ModelSizes.described_in(Path(directory), None, None, None)


@functools.cache
def predictor_of(directory: str) -> Predictor:
    """A predictor of the usual size for that model, untrained: it is only measured."""
    text = sizes_of(directory).config.text
    config = PredictorConfig(text.hidden_size, len(text.moe_layers), text.num_experts, text.num_experts_per_tok)
    return Predictor(config, nnx.state(RoutingPathPredictor(config, rngs=nnx.Rngs(0))))


def request_size(sizes: ModelSizes, batch_size: int, prompt_tokens: int, new_tokens: int, images: int) -> RequestSize:
    """Of a batch. Args: images: tokens of a prompt's image, 0 without one."""
    vision = sizes.config.vision
    patches = 0 if vision is None or not images else vision.most_patches(images)
    return RequestSize(batch_size, prompt_tokens, new_tokens, batch_size * patches, patches)


def block_plan(
    directory: str,
    size: RequestSize,
    batches_per_block: int,
    *,
    forecasts: bool,
    memory_budget: str | None = None,
    cache_fraction: float | None = None,
) -> MemoryPlan:
    """How device memory is divided where so many batches of this size run together.

    Raises:
      InputError: the budget does not hold the block and one expert.
    """
    sizes = sizes_of(directory)
    return plan_request(
        sizes.config,
        sizes.dense_bytes,
        sizes.layout.nbytes,
        dataclasses.replace(size, batches=batches_per_block),
        itemsize=np.dtype(sizes.dtype).itemsize,
        predictor=predictor_of(directory) if forecasts else None,
        memory_budget=memory_budget,
        cache_fraction=cache_fraction,
        scratch_bytes=sizes.scratch_bytes,
    )
