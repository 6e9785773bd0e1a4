"""From encoded prompts to the padded arrays of one batch; lengths are bucketed so that compilations stay few.

Axes: B sequences, T prompt tokens (padded right), P image patches, N image tokens.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from expertflow_jax.errors import InputError
from expertflow_jax.models.causal_lm import ModelConfig

TOKEN_BUCKET = 8


def bucket(length: int, multiple: int = TOKEN_BUCKET) -> int:
    """Smallest power of two or multiple of an eighth of one, at least `multiple`, that holds `length`."""
    step = max(multiple, (1 << max(length - 1, 1).bit_length()) // 8)
    return -(-length // step) * step


@dataclasses.dataclass(frozen=True)
class Prompt:
    """One encoded prompt, as a Hugging Face processor makes it."""

    input_ids: np.ndarray  # int32 [T]
    pixel_values: np.ndarray | None = None  # float32 [P, C * temporal * patch * patch]
    image_grid_thw: np.ndarray | None = None  # int [images, 3]


@dataclasses.dataclass(frozen=True)
class PromptBatch:
    """Right-padded prompts of one batch with all that the stages need."""

    input_ids: np.ndarray  # int32 [B, T]
    lengths: np.ndarray  # int32 [B]
    positions: np.ndarray  # int32 [3, B, T]
    next_position: np.ndarray  # int32 [B]
    pixel_values: np.ndarray | None
    vision_positions: Any
    image_index: np.ndarray | None  # int32 [B, T], which image token, -1 for text


def pad_prompts(config: ModelConfig, prompts: Sequence[Prompt], batch_size: int | None = None) -> PromptBatch:
    """Pads prompts to a common bucketed length, and to `batch_size` with empty sequences (length 0).

    Raises:
      InputError: a prompt is longer than the model's context, or its images do not fit it or the model.
    """
    size = max(len(prompts), batch_size or 0)
    longest = max(len(p.input_ids) for p in prompts)
    limit = config.text.max_position_embeddings
    if longest > limit:
        raise InputError(f"a prompt has {longest} tokens, the model's context is {limit}; shorten it")
    ids = np.zeros((size, bucket(longest)), np.int32)
    lengths = np.zeros(size, np.int32)
    for i, prompt in enumerate(prompts):
        ids[i, : len(prompt.input_ids)] = prompt.input_ids
        lengths[i] = len(prompt.input_ids)
    grids = [p.image_grid_thw for p in prompts if p.image_grid_thw is not None]
    grid = np.concatenate(grids) if grids else None
    positions, next_position = config.positions(ids, lengths, grid)
    if grid is None:
        return PromptBatch(ids, lengths, positions, next_position, None, None, None)
    pixels = np.concatenate([p.pixel_values for p in prompts if p.pixel_values is not None])
    inside = np.arange(ids.shape[1]) < lengths[:, None]
    is_image = (ids == config.image_token_id) & inside  # type: ignore[attr-defined]
    image_index = np.where(is_image, np.cumsum(is_image).reshape(ids.shape) - 1, -1).astype(np.int32)
    pixels, where = config.vision_inputs(pixels, grid)
    return PromptBatch(ids, lengths, positions, next_position, pixels, where, image_index)
