"""From encoded prompts to the padded arrays of one batch; lengths are bucketed so that compilations stay few.

Axes: B sequences, T prompt tokens (padded right), P image patches, N image tokens, L MoE layers.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int, Int32

from expertflow_jax.errors import InputError
from expertflow_jax.models.causal_lm import ModelConfig
from expertflow_jax.models.decoder_config import DecoderConfig

TOKEN_BUCKET = 8


def bucket(length: int, multiple: int = TOKEN_BUCKET) -> int:
    """Smallest power of two or multiple of an eighth of one, at least `multiple`, that holds `length`."""
    step = max(multiple, (1 << max(length - 1, 1).bit_length()) // 8)
    return -(-length // step) * step


@dataclasses.dataclass(frozen=True)
class Prompt:
    """One encoded prompt, as a Hugging Face processor makes it."""

    input_ids: Int32[np.ndarray, "T"]
    pixel_values: Float[np.ndarray, "P patch_dim"] | None = None
    image_grid_thw: Int[np.ndarray, "images 3"] | None = None  # patches in time, height and width
    encoder_tokens: int | None = None  # the first of input_ids that an encoder reads; the decoder reads the others


@dataclasses.dataclass(frozen=True)
class PromptBatch:
    """Right-padded prompts of one batch with all that the stages need."""

    input_ids: Int32[np.ndarray, "B T"]
    lengths: Int32[np.ndarray, "B"]
    positions: Int[np.ndarray, "3 B T"]
    next_position: Int[np.ndarray, "B"]
    pixel_values: Float[np.ndarray, "P patch_dim"] | None
    vision_positions: Any
    image_index: Int32[np.ndarray, "B T"] | None  # which image token, of N, -1 for text
    encoder_lengths: Int32[np.ndarray, "B"] | None = None  # tokens that an encoder reads

    @property
    def embed_index(self) -> Int32[np.ndarray, "B T"] | None:
        """What embeds each token, int32 [B, T]: `image_index`; of an encoder-decoder, -1 in the encoder and 0 in the
        decoder."""
        if self.encoder_lengths is None:
            return self.image_index
        return np.where(np.arange(self.input_ids.shape[1]) < self.encoder_lengths[:, None], -1, 0).astype(np.int32)

    def visits(self, text: DecoderConfig) -> Bool[np.ndarray, "B T L"] | None:
        """Which MoE layers a token goes through: bool [B, T, L]; None if all do."""
        if self.encoder_lengths is None:
            return None
        decodes = np.array([text.decode_layers[layer] for layer in text.moe_layers])
        return (np.arange(self.input_ids.shape[1]) >= self.encoder_lengths[:, None])[..., None] == decodes


def for_stacks(config: ModelConfig, prompt: Prompt, *, foretold: bool = False) -> Prompt:
    """A prompt as an encoder-decoder reads it: the start token follows; other models read it as it is.

    Args:
      foretold: the encoder reads the first half, and the decoder the start token and the second half, to foretell it.
    """
    start = getattr(config, "decoder_start_token_id", None)
    if start is None or prompt.encoder_tokens is not None:
        return prompt
    encoded = len(prompt.input_ids) // 2 if foretold else len(prompt.input_ids)
    first, second = np.split(prompt.input_ids, [encoded])
    return _joined(dataclasses.replace(prompt, input_ids=first), [start, *second])


def behind_encoder(config: ModelConfig, prompts: Sequence[Prompt], decoder_input_ids: Any) -> list[Prompt]:
    """Prompts of an encoder with what its decoder reads.

    Args:
      decoder_input_ids: int [B, T'], one row per prompt; None: the start token alone, see `for_stacks`.

    Raises:
      InputError: another shape, or a model without an encoder.
    """
    if decoder_input_ids is None:
        return [for_stacks(config, prompt) for prompt in prompts]
    if not hasattr(config, "decoder_start_token_id"):
        raise InputError("decoder_input_ids: the model has no encoder; put these tokens into input_ids")
    rows = np.asarray(decoder_input_ids)
    if rows.ndim != 2 or len(rows) != len(prompts) or not rows.size or not np.issubdtype(rows.dtype, np.integer):
        raise InputError(
            f"decoder_input_ids: want integers [{len(prompts)}, T], as many rows as input_ids has and at least one "
            f"token, got {rows.dtype} {rows.shape}"
        )
    return [_joined(prompt, row) for prompt, row in zip(prompts, rows, strict=True)]


def _joined(prompt: Prompt, decoded: Any) -> Prompt:
    """The prompt, all of which the encoder reads, followed by the decoder's tokens."""
    ids = np.concatenate([prompt.input_ids, decoded]).astype(np.int32)
    return dataclasses.replace(prompt, input_ids=ids, encoder_tokens=len(prompt.input_ids))


def pad_prompts(config: ModelConfig, prompts: Sequence[Prompt], batch_size: int | None = None) -> PromptBatch:
    """Pads prompts to a common bucketed length, and to `batch_size` with empty sequences (length 0).

    Raises:
      InputError: a prompt is longer than the model's context or has a token outside the vocabulary, or its images do
        not fit it or the model.
    """
    prompts = [for_stacks(config, prompt) for prompt in prompts]
    size = max(len(prompts), batch_size or 0)
    longest = max(len(p.input_ids) for p in prompts)
    limit = config.text.context
    if longest > limit:
        raise InputError(f"a prompt has {longest} tokens, the model's context is {limit}; shorten it")
    _check_vocabulary(config, prompts)
    ids = np.zeros((size, bucket(longest)), np.int32)
    lengths = np.zeros(size, np.int32)
    for i, prompt in enumerate(prompts):
        ids[i, : len(prompt.input_ids)] = prompt.input_ids
        lengths[i] = len(prompt.input_ids)
    if prompts[0].encoder_tokens is not None:
        return _pad_stacks(config, prompts, ids, lengths)
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


def _check_vocabulary(config: ModelConfig, prompts: Sequence[Prompt]) -> None:
    """A lookup outside the table would quietly give another token's embedding."""
    vocabulary = config.text.vocab_size
    for prompt in prompts:
        if len(prompt.input_ids) and not 0 <= prompt.input_ids.min() <= prompt.input_ids.max() < vocabulary:
            wrong = next(int(i) for i in prompt.input_ids if not 0 <= i < vocabulary)
            raise InputError(f"input_ids: token {wrong} is outside the vocabulary of {vocabulary}")


def _pad_stacks(
    config: Any, prompts: Sequence[Prompt], ids: Int32[np.ndarray, "B T"], lengths: Int32[np.ndarray, "B"]
) -> PromptBatch:
    if any(prompt.pixel_values is not None for prompt in prompts):
        raise InputError("the model takes no images; leave out pixel_values and image_grid_thw")
    encoded = np.zeros(len(lengths), np.int32)
    encoded[: len(prompts)] = [prompt.encoder_tokens or 0 for prompt in prompts]
    positions = config.stack_positions(encoded, lengths, ids.shape[1])
    return PromptBatch(ids, lengths, positions, lengths - encoded, None, None, None, encoded)
