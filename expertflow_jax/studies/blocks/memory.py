"""Device memory of a block of batches on a full-size model, from its config.json alone."""

import dataclasses
import functools
from pathlib import Path

import numpy as np
from flax import nnx

from expertflow_jax.errors import InputError
from expertflow_jax.inference.memory import RequestSize, plan_request
from expertflow_jax.inference.planning import ModelSizes
from expertflow_jax.offload.budget import MemoryPlan, format_bytes, parse_bytes
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
    """How device memory is divided where so many batches of this size run together: each holds its KV cache, and its
    hidden states while the others compute; one batch at a time needs the workspace.

    Raises:
      InputError: the budget does not hold the block and one expert.
    """
    sizes = sizes_of(directory)
    itemsize = np.dtype(sizes.dtype).itemsize
    predictor = predictor_of(directory) if forecasts else None
    text = sizes.config.text
    plan = plan_request(
        sizes.config,
        sizes.dense_bytes,
        sizes.layout.nbytes,
        size,
        itemsize=itemsize,
        predictor=predictor,
        cache_fraction=cache_fraction or 1 / (len(text.moe_layers) * text.num_experts),
        scratch_bytes=sizes.layout.scratch_bytes,
    )
    more = batches_per_block - 1
    rows = size.sequences * size.tokens
    k = text.num_experts_per_tok
    # embeddings as given, the residual stream before and after attention, what experts read, their outputs; the choice
    waiting = itemsize * (rows * (4 + k) + 1) * text.hidden_size + rows * (text.num_experts + 2 * k) * 4
    cache = predictor.cache_nbytes(size.sequences, size.tokens + size.new_tokens) if predictor else 0
    plan = dataclasses.replace(
        plan,
        kv_bytes=plan.kv_bytes * batches_per_block,
        workspace_bytes=plan.workspace_bytes + more * waiting,
        predictor_bytes=plan.predictor_bytes + more * cache,
    )
    if memory_budget is None:
        return plan
    room = parse_bytes(memory_budget) - plan.fixed_bytes
    if room < plan.expert_bytes:
        raise InputError(
            f"memory_budget {memory_budget}: a block of {batches_per_block} batches needs "
            f"{format_bytes(plan.minimum_bytes)}; let fewer batches run together, or give more memory"
        )
    return dataclasses.replace(plan, slots=min(plan.num_layers * plan.num_experts, room // plan.expert_bytes))
