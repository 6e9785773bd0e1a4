"""How many device bytes a request needs beside the expert slots, from shapes alone.

Axes: M batches of a block, B sequences of a batch, T new tokens, S cache length, N = B * T, K top-k, E experts, D model
width, V vocabulary, C rows of one expert, Q patches of an image.
"""

import dataclasses
from collections.abc import Callable

import numpy as np

from expertflow_jax.errors import InputError
from expertflow_jax.models.causal_lm import ModelConfig
from expertflow_jax.offload.budget import HostPlan, MemoryPlan, parse_bytes, plan_memory
from expertflow_jax.predictor import Predictor
from expertflow_jax.processing.batching import Prompt, bucket


@dataclasses.dataclass(frozen=True)
class RequestSize:
    """The largest block of batches that a plan must hold.

    Attributes:
      sequences: B.
      prompt_tokens: longest prompt.
      new_tokens: longest answer.
      patches: image patches of the whole batch.
      image_patches: patches of the largest image.
      batches: M.
    """

    sequences: int
    prompt_tokens: int
    new_tokens: int
    patches: int = 0
    image_patches: int = 0
    batches: int = 1

    @staticmethod
    def of(prompts: list[Prompt], batch_size: int, new_tokens: int, batches: int = 1) -> "RequestSize":
        """The largest block of so many batches that can be formed of these prompts."""
        images = [int(np.prod(grid)) for p in prompts if p.image_grid_thw is not None for grid in p.image_grid_thw]
        per_prompt = [0 if p.pixel_values is None else len(p.pixel_values) for p in prompts]
        return RequestSize(
            batch_size,
            max(len(p.input_ids) for p in prompts),
            new_tokens,
            sum(sorted(per_prompt)[-batch_size:]),
            max(images, default=0),
            batches,
        )

    @property
    def tokens(self) -> int:
        """T of the prefill, padding included."""
        return bucket(self.prompt_tokens)

    @property
    def room(self) -> int:
        """S, positions of the KV cache."""
        return bucket(self.tokens + self.new_tokens)


def kv_bytes(config: ModelConfig, size: RequestSize, itemsize: int) -> int:
    """Bytes of keys and values of all layers, of all batches; behind an encoder, of its output's too."""
    text = config.text
    width = text.num_key_value_heads * text.head_dim
    return 2 * sum(text.cached_layers) * size.batches * size.sequences * size.room * width * itemsize


def workspace_bytes(config: ModelConfig, size: RequestSize, itemsize: int) -> int:
    """An upper bound on activations and temporaries of the largest super-step, in the stages of `inference.stages`.

    Stages run one after another: a block's further batches add what waits between them (see `_waiting_bytes`). Text:
    residual streams, attention with float32 scores, router probabilities, expert outputs and two experts' intermediate
    rows (of a group, one runs after another), the shared expert's. Vision: what its config says, and what it hands on.
    """
    text = config.text
    n, d, k = size.sequences * size.tokens, text.hidden_size, text.num_experts_per_tok
    heads, width = text.num_attention_heads, text.head_dim
    streams = 6 * n * d
    projections = 3 * n * (heads + 2 * text.num_key_value_heads) * width
    scores = 2 * size.sequences * heads * size.tokens * size.room * 4
    routing = n * (2 * text.num_experts + 4 * k) * 4
    outputs = (n * k + 1) * d
    rows = 2 * n * (2 * d + 3 * text.moe_intermediate_size)
    logits = 2 * size.sequences * text.vocab_size * 4
    shared = 3 * n * text.shared_expert_intermediate_size
    language = itemsize * (streams + projections + outputs + rows + shared) + scores + routing + logits
    waiting = (size.batches - 1) * _waiting_bytes(config, size, itemsize)
    if config.vision is None:
        return 2 * language + waiting
    tower = config.vision.activation_bytes(size.patches, size.image_patches, itemsize)
    return 2 * (max(language, tower) + _embedded_bytes(config, size, itemsize)) + waiting


def _embedded_bytes(config: ModelConfig, size: RequestSize, itemsize: int) -> int:
    """What the vision tower hands on: image tokens, and DeepStack features of each level."""
    vision = config.vision
    if vision is None:
        return 0
    return itemsize * (2 + vision.feature_levels) * vision.most_tokens(size.patches) * config.text.hidden_size


def _waiting_bytes(config: ModelConfig, size: RequestSize, itemsize: int) -> int:
    """Bytes of a batch that waits while another of its block computes: embeddings as they were given, the residual
    stream before and after attention, what experts read, their outputs, the router's choice; and image features."""
    text = config.text
    n, k = size.sequences * size.tokens, text.num_experts_per_tok
    rows = 4 * n + n * k + 1
    routing = n * (text.num_experts + 2 * k) * 4
    return itemsize * rows * text.hidden_size + routing + _embedded_bytes(config, size, itemsize)


def plan_request(
    config: ModelConfig,
    dense_bytes: int,
    expert_bytes: int,
    size: RequestSize,
    *,
    itemsize: int,
    predictor: Predictor | None = None,
    memory_budget: str | int | None = None,
    cache_fraction: float | None = None,
    scratch_bytes: int = 0,
    host: HostPlan | None = None,
) -> MemoryPlan:
    """Divides the device memory for requests up to `size`.

    Args:
      scratch_bytes: that running an expert takes beside its arrays (`BufferLayout.scratch_bytes`).
      host: how the experts are divided below the device; None: all are pinned.

    Raises:
      InputError: the budget is below the minimum (which the message names, and how many batches of a block would fit),
        or the arguments contradict each other.
    """
    text = config.text
    budget = None if memory_budget is None else parse_bytes(memory_budget)

    def planned(size: RequestSize) -> MemoryPlan:
        forecast, workspace = 0, workspace_bytes(config, size, itemsize) + scratch_bytes
        if predictor is not None:
            cache = predictor.cache_nbytes(size.batches * size.sequences, size.tokens + size.new_tokens)
            forecast = predictor.nbytes + cache
            # It runs between the model's stages, so that its temporaries (a batch's forecast twice, its cache when that
            # grows) take the place of theirs.
            outputs = 2 * 4 * size.sequences * size.tokens * len(text.moe_layers) * text.num_experts
            workspace = max(workspace, outputs + cache)
        return plan_memory(
            budget,
            cache_fraction,
            dense=dense_bytes,
            kv=kv_bytes(config, size, itemsize),
            workspace=workspace,
            predictor=forecast,
            expert_bytes=expert_bytes,
            num_layers=len(text.moe_layers),
            num_experts=text.num_experts,
            host=host,
        )

    try:
        return planned(size)
    except InputError as error:
        for batches in range(size.batches - 1, 0, -1):
            if _fits(planned, dataclasses.replace(size, batches=batches)):
                wanted = f"batches_per_block={size.batches}"
                raise InputError(f"{wanted}: {error}; or take batches_per_block={batches}, which fits") from error
        raise


def _fits(planned: Callable[[RequestSize], MemoryPlan], size: RequestSize) -> bool:
    try:
        planned(size)
    except InputError:
        return False
    return True


MOST_BATCHES = 8  # of a block that nobody has asked for by number


def best_block(planned: Callable[[int], MemoryPlan]) -> int:
    """The M of 1, 2, 4, ... `MOST_BATCHES` by which fewest experts travel for each batch.

    A batch of prompts wants nearly all experts, and those without a slot travel once per super-step, whatever the
    policy: (experts - slots) / M for each of M batches, whose KV caches take memory from slots. Of two as good, the
    smaller one: it answers sooner.

    Args:
      planned: the plan for M batches.

    Raises:
      InputError: not even one batch fits.
    """
    travelling: dict[int, float] = {}
    batches = 1
    while batches <= MOST_BATCHES:
        try:
            plan = planned(batches)
        except InputError:
            if batches == 1:
                raise
            break
        travelling[batches] = (plan.num_layers * plan.num_experts - plan.slots) / batches
        batches *= 2
    return min(travelling, key=lambda m: (travelling[m], m))
