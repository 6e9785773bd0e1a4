"""Lays Aria's images out for its vision tower (host side).

Images come padded to squares with a mask. Here they are rows of patches, one image after another, each patch with a
last number that is 1 where it is padding: how many tokens an image becomes follows from its size with the padding,
while the tower sees what is not padding alone. Axes: N images, C channels, P packed patches, G images (padded), Q
patches of one image (padded), M image tokens.
"""

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from expertflow_jax.errors import InputError
from expertflow_jax.models.vision_layout import bucket

LANES = 8  # torch fills ranges of float32 on a CPU by two vectors of so many at a time


class PatchSizes(Protocol):
    """What the layout asks of `aria_config.AriaVision`."""

    @property
    def side(self) -> int:
        """Learned positions to a side."""

    @property
    def patch_dim(self) -> int:
        """Numbers per patch, the last says whether it is padding."""

    @property
    def learned_queries(self) -> int:
        """Image tokens at most."""

    def image_tokens(self, grid: np.ndarray) -> int:
        """Tokens of an image of `grid` patches."""


def pack(
    pixel_values: np.ndarray, pixel_mask: np.ndarray | None, *, channels: int, patch_size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Cuts padded images into patches.

    Args:
      pixel_values: float [N, C, H, W], as Hugging Face's processor gives them.
      pixel_mask: bool or 0/1 [N, H, W], what is not padding; None: everything. A patch is padding if all of it is.

    Returns:
      float32 [P, C * patch_size ** 2 + 1], and the grids int64 [N, 3], patches in time (1), height and width.

    Raises:
      InputError: shapes that do not fit together.
    """
    pixels = np.asarray(pixel_values, np.float32)
    if pixels.ndim != 4 or pixels.shape[1] != channels:
        raise InputError(f"pixel_values: want [images, {channels}, height, width], got {pixels.shape}")
    images, _, height, width = pixels.shape
    mask = np.ones((images, height, width), bool) if pixel_mask is None else np.asarray(pixel_mask).astype(bool)
    if mask.shape != (images, height, width):
        raise InputError(f"pixel_mask: want {(images, height, width)} as pixel_values has, got {mask.shape}")
    rows, columns = height // patch_size, width // patch_size
    cut = (slice(None), slice(rows * patch_size), slice(columns * patch_size))
    seen = mask[cut].reshape(images, rows, patch_size, columns, patch_size).any(axis=(2, 4))
    patches = pixels[:, :, *cut[1:]].reshape(images, channels, rows, patch_size, columns, patch_size)
    patches = patches.transpose(0, 2, 4, 1, 3, 5).reshape(-1, channels * patch_size**2)
    padding = (~seen).reshape(-1, 1).astype(np.float32)
    return np.concatenate([patches, padding], axis=1), np.tile(np.array([1, rows, columns], np.int64), (images, 1))


def check_tokens(image_tokens: np.ndarray, needs: Sequence[int]) -> None:
    """Checks that the images are those that the prompts have places for.

    Args:
      image_tokens: int [B], image tokens of each prompt.
      needs: tokens of each image, in the order of the prompts.

    Raises:
      InputError: image tokens and images do not fit together.
    """
    rest = list(needs)
    for row, count in enumerate(image_tokens.tolist()):
        left = count
        while left > 0 and rest:
            left -= rest.pop(0)
        if left:
            raise InputError(
                f"sequence {row} has {count} image tokens, which no whole number of the {len(needs)} images given takes"
            )
    if rest:
        raise InputError(f"the prompts have places for {len(needs) - len(rest)} images, {len(needs)} were given")


def vision_inputs(
    config: PatchSizes, pixel_values: np.ndarray, grid_thw: np.ndarray
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Lays packed patches out by image without the padding, then pads to bucketed sizes.

    Args:
      pixel_values: float [P, patch_dim], see `pack`.
      grid_thw: int [N, 3].

    Returns:
      pixel_values float32 [G, Q, patch_dim - 1], and where they are: `table` int32 [G, Q] (learned positions), `valid`
      bool [G, Q], `tokens` int32 [M] (where each image token stands among the learned queries of all images; padded
      with 0).

    Raises:
      InputError: sizes that do not fit together, an image without queries, or one that is all padding.
    """
    counts = [int(np.prod(grid)) for grid in grid_thw]
    needs = [config.image_tokens(grid) for grid in grid_thw]
    if pixel_values.shape != (sum(counts), config.patch_dim):
        raise InputError(
            f"pixel_values has shape {pixel_values.shape}, image_grid_thw asks for {(sum(counts), config.patch_dim)}"
        )
    images = []
    for number, (patches, grid) in enumerate(
        zip(np.split(pixel_values, np.cumsum(counts)[:-1]), np.asarray(grid_thw), strict=True)
    ):
        seen = patches[:, -1] == 0
        images.append((patches[seen, :-1], _positions(seen.reshape(grid[1:]), config.side, number)[seen]))
    size, length = bucket(len(images), 1), bucket(max(len(patches) for patches, _ in images), 1)
    pixels = np.zeros((size, length, config.patch_dim - 1), np.float32)
    table, valid = np.zeros((size, length), np.int32), np.zeros((size, length), bool)
    for i, (patches, where) in enumerate(images):
        pixels[i, : len(patches)], table[i, : len(patches)], valid[i, : len(patches)] = patches, where, True
    tokens = np.concatenate([i * config.learned_queries + np.arange(count) for i, count in enumerate(needs)])
    tokens = np.pad(tokens, (0, bucket(len(tokens), 1) - len(tokens))).astype(np.int32)
    return pixels, {"table": table, "valid": valid, "tokens": tokens}


def _positions(seen: np.ndarray, side: int, image: int) -> np.ndarray:
    """Learned position of each patch, int32 [rows * columns]: what is seen spreads over the whole table.

    Args:
      seen: bool [rows, columns], false on padding.
      side: learned positions to a side.
      image: its number, for messages.
    """
    high, wide = int(seen[:, 0].sum()), int(seen[0].sum())
    if not high or not wide:
        raise InputError(f"pixel_mask of image {image}: the first row and column must not be all padding")
    rows, columns = seen.shape
    return (_axis(rows, high, side)[:, None] * side + _axis(columns, wide, side)).reshape(-1).astype(np.int32)


def _axis(count: int, seen: int, side: int) -> np.ndarray:
    """Which of `side` learned positions each of `count` patches has, `seen` of which are not padding.

    Where a patch falls on a boundary, rounding decides; so this rounds as the reference does on a CPU.
    """
    step = 1 / side
    index = np.arange(int(np.ceil((1.0 - step) / step)))
    lane = np.where(index < len(index) // (2 * LANES) * (2 * LANES), index % LANES, 0)
    first = step + step * (index - lane)
    first = np.where(lane > 0, first.astype(np.float32), first)
    boundaries = (first + lane * step).astype(np.float32)
    places = np.arange(count, dtype=np.float32) * (np.float32(1.0) / np.float32(seen))
    return np.searchsorted(boundaries, np.minimum(places, np.float32(1.0 - 1e-6)), side="right")
