"""Prompts from arrays as Hugging Face's tokenizers and processors make them: NumPy arrays, lists, or anything that
NumPy reads. Axes: B sequences, T tokens, P patches.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from expertflow_jax.errors import InputError
from expertflow_jax.models.causal_lm import ModelConfig
from expertflow_jax.processing.batching import Prompt


def as_array(name: str, values: Any) -> np.ndarray:
    """`values` as NumPy reads them.

    Raises:
      InputError: it cannot: rows of different lengths, or a tensor on a device or of a dtype that NumPy has not.
    """
    try:
        return np.asarray(values)
    except Exception as error:  # whatever `__array__` of the caller's object raises
        reason = str(error).split("\n")[0][:120]
        raise InputError(f"{name}: NumPy can't read it ({reason}); give arrays of numbers, on the CPU") from error


def token_rows(name: str, values: Any, vocabulary: int) -> list[Int[np.ndarray, "T"]]:
    """Token ids of each sequence, int32.

    Args:
      name: of the argument, for messages.
      values: integers [B, T], [T] for one sequence, or lists of different lengths.
      vocabulary: ids are below it.

    Raises:
      InputError: no sequence, an empty one, what is no whole number, or an id outside the vocabulary.
    """
    rows = _rows(name, values)
    if not rows:
        raise InputError(f"{name}: no prompts; give integers [B, T] or lists of them")
    return [_token_row(name, row, vocabulary) for row in rows]


def _rows(name: str, values: Any) -> list[Any]:
    """The sequences; lists may be of different lengths, which no array is."""
    if not isinstance(values, list | tuple):
        values = as_array(name, values)
        return list(values) if values.ndim > 1 else [values]
    return [values] if values and np.ndim(values[0]) == 0 else list(values)


def _token_row(name: str, row: Any, vocabulary: int) -> Int[np.ndarray, "T"]:
    # [True, 5] would become integers.
    truths = isinstance(row, list | tuple) and any(isinstance(token, bool | np.bool_) for token in row)
    ids = as_array(name, row)
    if ids.ndim == 1 and not ids.size:
        raise InputError(f"{name}: a prompt is empty; give it at least one token")
    if truths or ids.ndim != 1 or not (np.issubdtype(ids.dtype, np.integer) or _is_huge(ids)):
        kind = "bool" if truths else ids.dtype
        raise InputError(f"{name}: want integers [B, T] or lists of them, got {kind} {ids.shape} in a row")
    outside = ids[(ids < 0) | (ids >= vocabulary)]
    if outside.size:
        raise InputError(f"{name}: token {str(outside[0])[:40]} is outside the vocabulary of {vocabulary}")
    return ids.astype(np.int32)


def _is_huge(ids: np.ndarray) -> bool:
    """Whether these are Python integers, one of which no dtype of NumPy holds."""
    return ids.dtype == object and all(type(token) is int for token in ids)


def valid_rows(input_ids: Any, attention_mask: Any, vocabulary: int) -> list[Int[np.ndarray, "T"]]:
    """Token ids of each sequence without its padding, which may stand left or right, int32.

    Args:
      input_ids: as `token_rows`.
      attention_mask: 0 or 1 of the same shape; None: no padding.

    Raises:
      InputError: as `token_rows`; or the mask has another shape, other values, zeros alone in a row, or zeros between
        ones.
    """
    rows = token_rows("input_ids", input_ids, vocabulary)
    if attention_mask is None:
        return rows
    masks = _rows("attention_mask", attention_mask)
    if len(masks) != len(rows):
        raise InputError(f"attention_mask: {len(masks)} rows, input_ids has {len(rows)}")
    return [row[_valid(row, as_array("attention_mask", mask))] for row, mask in zip(rows, masks, strict=True)]


def _valid(row: np.ndarray, mask: np.ndarray) -> slice:
    """Where the ones of a mask stand."""
    if mask.shape != row.shape or not np.isin(mask, (0, 1)).all():
        raise InputError(f"attention_mask: want 0 and 1 for each of {len(row)} tokens, got {mask.dtype} {mask.shape}")
    places = np.flatnonzero(mask)
    if not len(places) or places[-1] - places[0] >= len(places):
        raise InputError("attention_mask: want at least one 1 in a row, and zeros only before or behind all ones")
    return slice(places[0], places[-1] + 1)


def with_pictures(
    config: ModelConfig, rows: Sequence[np.ndarray], pixel_values: Any, image_grid_thw: Any, pixel_mask: Any
) -> list[Prompt]:
    """Prompts of token ids, each with those images, in their order, that its image tokens are places for.

    Args:
      rows: int32 [T] of each.
      pixel_values, image_grid_thw, pixel_mask: see `OffloadedModel.logits`; all None without images.

    Raises:
      InputError: images that do not fit the model or the prompts.
    """
    if pixel_values is None and image_grid_thw is None and pixel_mask is None:
        return [Prompt(row) for row in rows]
    vision: Any = config.vision
    if vision is None:
        raise InputError("pixel_values: the model takes no images")
    if pixel_values is None:
        raise InputError("image_grid_thw and pixel_mask: give them with pixel_values")
    arrays = [
        None if values is None else as_array(name, values)
        for name, values in (
            ("pixel_values", pixel_values),
            ("image_grid_thw", image_grid_thw),
            ("pixel_mask", pixel_mask),
        )
    ]
    for name, array in zip(("pixel_values", "image_grid_thw", "pixel_mask"), arrays, strict=True):
        if array is not None and not (np.issubdtype(array.dtype, np.number) or array.dtype == bool):
            raise InputError(f"{name}: want numbers, got {array.dtype} {array.shape}")
    patches, grids = vision.pack(*arrays)
    _check_grids(patches, grids)
    prompts, image, patch = [], 0, 0
    for row in rows:
        places = int((row == config.image_token_id).sum())  # type: ignore[attr-defined]
        first, begin = image, patch
        while image < len(grids) and places > 0:
            places -= vision.image_tokens(grids[image])
            patch += int(np.prod(grids[image]))
            image += 1
        if image == first:
            prompts.append(Prompt(row))
        else:
            prompts.append(Prompt(row, patches[begin:patch], grids[first:image]))
    if image < len(grids):
        raise InputError(f"the prompts have places for {image} images, {len(grids)} were given")
    return prompts


def _check_grids(patches: np.ndarray, grids: np.ndarray) -> None:
    """Checks the shapes of packed patches [P, patch_dim] and grids [images, 3]."""
    if grids.ndim != 2 or grids.shape[1] != 3 or not np.issubdtype(grids.dtype, np.integer) or (grids < 1).any():
        raise InputError(f"image_grid_thw: want integers [images, 3] of at least 1, got {grids.dtype} {grids.shape}")
    total = sum(math.prod(grid) for grid in grids.tolist())
    if patches.ndim != 2 or len(patches) != total:
        raise InputError(f"pixel_values: image_grid_thw wants [{total}, patch_dim], got {patches.shape}")
