"""Rotary positions: plain ones for text, interleaved M-RoPE of Qwen3-VL for text and images.

Every token has three positions (time, height, width). Text families give it the same one three times and read the
first; Qwen3-VL lets the frequencies of one head take turns between them: t h w t h w ..., the rest t. Axes: B
sequences, T tokens, H heads, Dh head width.
"""

import jax
import jax.numpy as jnp
import numpy as np

from expertflow_jax.errors import InputError
from expertflow_jax.models.decoder_config import DecoderConfig
from expertflow_jax.models.rope_scaling import dynamic_frequencies, scaled_frequencies


def interleaved_axes(head_dim: int, mrope_section: tuple[int, ...]) -> np.ndarray:
    """Which of (time, height, width) each frequency turns with: int32 [head_dim / 2]."""
    axes = np.zeros(head_dim // 2, np.int32)
    for axis in (1, 2):
        axes[axis : 3 * mrope_section[axis] : 3] = axis
    return axes


def rope_angles(positions: jax.Array, config: DecoderConfig) -> tuple[jax.Array, float]:
    """Angles of a decoder's heads, and what their cosines and sines are multiplied by.

    Args:
      positions: int32 [3, B, T].

    Returns:
      float32 [B, T, head_dim / 2], and a number.
    """
    scaling, context = config.rope_scaling, config.max_position_embeddings
    plain, scale = scaled_frequencies(config.head_dim, config.rope_theta, scaling)
    frequencies: jax.Array = jnp.asarray(plain)
    if scaling.kind == "dynamic":
        lengths = positions.max(axis=(0, 2)) + 1
        of_sequences = dynamic_frequencies(lengths, config.head_dim, config.rope_theta, scaling.factor, context)
        frequencies = of_sequences[:, None]
    if not config.mrope_section:
        return positions[0][..., None].astype(jnp.float32) * frequencies, scale
    axes = interleaved_axes(config.head_dim, config.mrope_section)
    turns = jnp.moveaxis(positions[axes], 0, -1).astype(jnp.float32)
    return turns * frequencies, scale


def rotate(x: jax.Array, angles: jax.Array, scale: float = 1.0) -> jax.Array:
    """Rotates pairs (i, i + Dh / 2) of each head, in float32.

    Args:
      x: [..., T, H, Dh].
      angles: float32 [..., T, Dh / 2].
      scale: of the result.
    """
    cos, sin = jnp.cos(angles)[..., None, :], jnp.sin(angles)[..., None, :]
    if scale != 1.0:
        cos, sin = cos * scale, sin * scale
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return turned.astype(x.dtype)


def text_positions(lengths: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Positions of right-padded prompts without images (host side).

    Args:
      lengths: int [B], valid tokens.
      width: T.

    Returns:
      positions int32 [3, B, T] (0 on padding) and next_position int32 [B], where decoding goes on.
    """
    step = np.arange(width, dtype=np.int32)
    positions = np.where(step < lengths[:, None], step, 0)
    return np.broadcast_to(positions, (3, *positions.shape)).copy(), lengths.astype(np.int32)


def image_positions(
    input_ids: np.ndarray,
    lengths: np.ndarray,
    grid_thw: np.ndarray | None,
    *,
    image_token_id: int,
    video_token_id: int,
    merge: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Three-part positions of right-padded prompts (host side), as Qwen3-VL's `get_rope_index` gives them.

    Text counts on in all three parts; an image starts where the text stands, spreads over height and width, and
    the text goes on after the longer side.

    Args:
      input_ids: int [B, T].
      lengths: int [B], valid tokens.
      grid_thw: int [images, 3] patches in time, height and width of the images in the order of the prompts.
      image_token_id, video_token_id: of the vocabulary.
      merge: patches to a side of an image token.

    Returns:
      positions int32 [3, B, T] (0 on padding) and next_position int32 [B], where decoding goes on.

    Raises:
      InputError: image tokens and images do not fit together, or there are video tokens.
    """
    batch, width = input_ids.shape
    positions = np.zeros((3, batch, width), np.int32)
    next_position = np.zeros(batch, np.int32)
    grids = [] if grid_thw is None else [tuple(int(n) for n in grid) for grid in grid_thw]
    used = 0
    for row in range(batch):
        length = int(lengths[row])
        ids = input_ids[row, :length]
        if (ids == video_token_id).any():
            raise InputError(f"sequence {row} has video tokens; only images are supported")
        is_image = ids == image_token_id
        at = here = 0
        while at < length:
            if not is_image[at]:
                stop = at + int(np.argmax(is_image[at:])) if is_image[at:].any() else length
                positions[:, row, at:stop] = here + np.arange(stop - at)
                here += stop - at
            else:
                if used == len(grids):
                    raise InputError(f"sequence {row} has more image tokens than the {len(grids)} images given")
                time, high, wide = grids[used][0], grids[used][1] // merge, grids[used][2] // merge
                stop = at + time * high * wide
                if stop > length or not is_image[at:stop].all():
                    raise InputError(f"sequence {row}: image {used} needs {stop - at} image tokens in a row")
                spread = np.indices((time, high, wide)).reshape(3, -1)
                positions[:, row, at:stop] = here + spread
                here += max(high, wide)
                used += 1
            at = stop
        next_position[row] = positions[:, row, :length].max(initial=-1) + 1
    if used != len(grids):
        raise InputError(f"the prompts have places for {used} images, {len(grids)} were given")
    return positions, next_position
