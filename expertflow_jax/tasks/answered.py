"""Questions with their answers as model inputs for training. Axes: B sequences, T tokens, P patches."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8
from tokenizers import Tokenizer

from expertflow_jax.models.qwen3_vl_config import Qwen3VLMoeConfig
from expertflow_jax.processing.patches import normalise, patchify
from expertflow_jax.tasks.word_processor import END, MERGE, PATCH

Batch = dict[str, np.ndarray]


def encode(
    model: Qwen3VLMoeConfig,
    images: UInt8[np.ndarray, "B H W 3"],
    pairs: Sequence[tuple[str, str]],
    width: int,
    tokenizer: Tokenizer,
) -> Batch:
    """Model inputs of (prompt, answer) pairs, right-padded to `width` tokens.

    Returns:
      input_ids int32 [B, T], lengths int32 [B], answer_mask bool [B, T], positions int32 [3, B, T], image_index int32
      [B, T], pixel_values float32 [B, P, pixels of a patch].
    """
    batch = len(pairs)
    prompts = tokenizer.encode_batch([prompt for prompt, _ in pairs], add_special_tokens=False)
    answers = tokenizer.encode_batch([answer + END for _, answer in pairs], add_special_tokens=False)
    ids = np.zeros((batch, width), np.int32)  # [B, T]
    mask = np.zeros((batch, width), bool)  # [B, T]
    lengths = np.zeros(batch, np.int32)
    for row, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        sequence = prompt.ids + answer.ids
        ids[row, : len(sequence)] = sequence
        mask[row, len(prompt.ids) : len(sequence)] = True
        lengths[row] = len(sequence)
    patches = images.shape[1] // PATCH, images.shape[2] // PATCH
    positions, _ = model.positions(ids, lengths, np.tile(np.array([1, *patches]), (batch, 1)))
    is_image = ids == model.image_token_id  # [B, T]
    index = np.where(is_image, np.cumsum(is_image).reshape(ids.shape) - 1, -1).astype(np.int32)
    pixels = normalise(images, rescale=1 / 255, mean=np.full(3, 0.5), std=np.full(3, 0.5))
    return {
        "input_ids": ids,
        "lengths": lengths,
        "answer_mask": mask,
        "positions": positions,
        "image_index": index,
        "pixel_values": patchify(pixels, patch_size=PATCH, temporal_patch_size=1, merge_size=MERGE),
    }
