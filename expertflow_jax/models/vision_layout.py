"""Lays image patches out by frame for Qwen3-VL's vision tower (host side).

Axes: P packed patches, G frames, Q patches per frame (padded), N image tokens.
"""

from typing import Protocol

import numpy as np

from expertflow_jax.errors import InputError


class PatchSizes(Protocol):
    """What the layout asks of `qwen3_vl_config.VisionConfig`."""

    @property
    def spatial_merge_size(self) -> int:
        """Patches to a side of an image token."""

    @property
    def num_position_embeddings(self) -> int:
        """Learned positions, a square."""

    @property
    def patch_dim(self) -> int:
        """Numbers per patch."""


def bucket(count: int, multiple: int) -> int:
    """`count` rounded up to a multiple of an eighth of the next power of two, and of `multiple`."""
    step = max(1, (1 << max(count - 1, 1).bit_length()) // 8)
    step = -(-step // multiple) * multiple
    return -(-count // step) * step


def _axis_taps(index: np.ndarray, size: int, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Two neighbours on an axis of `side` learned positions and their linear weights, corners aligned."""
    source = index.astype(np.float32) * np.float32(side - 1) / np.float32(max(size - 1, 1))
    floor = np.floor(source)
    taps = floor.astype(np.int32)[:, None] + np.arange(2, dtype=np.int32)
    weights = np.maximum(1 - np.abs(source[:, None] - floor[:, None] - np.arange(2, dtype=np.float32)), 0)
    return np.clip(taps, 0, side - 1), weights.astype(np.float32)


def _frame_positions(config: PatchSizes, high: int, wide: int) -> dict[str, np.ndarray]:
    """Positions of one frame of `high` x `wide` patches in merge-block order, leading axis of patches."""
    merge, side = config.spatial_merge_size, round(config.num_position_embeddings**0.5)
    order = np.arange(high * wide).reshape(high // merge, merge, wide // merge, merge)
    row, col = np.divmod(order.transpose(0, 2, 1, 3).reshape(-1), wide)
    row_taps, row_weights = _axis_taps(row, high, side)
    col_taps, col_weights = _axis_taps(col, wide, side)
    return {
        "table": (row_taps[:, :, None] * side + col_taps[:, None, :]).reshape(-1, 4),
        "weight": (row_weights[:, :, None] * col_weights[:, None, :]).reshape(-1, 4),
        "row_col": np.stack([row, col], axis=-1).astype(np.int32),
        "valid": np.ones(high * wide, bool),
    }


def same_size_positions(config: PatchSizes, high: int, wide: int) -> dict[str, np.ndarray | None]:
    """Positions shared by any number of images of `high` x `wide` patches each; nothing is padded.

    With them `pixel_values` is [images, high * wide, patch_dim], and image tokens come out in that order.
    """
    return {k: v[None] for k, v in _frame_positions(config, high, wide).items()} | {"tokens": None}


def vision_inputs(
    config: PatchSizes, pixel_values: np.ndarray, grid_thw: np.ndarray
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Lays packed patches out by frame, padded to bucketed sizes.

    Args:
      pixel_values: float [P, patch_dim], patches of all images one after another.
      grid_thw: int [images, 3].

    Returns:
      pixel_values float32 [G, Q, patch_dim], and the positions: `table` int32 [G, Q, 4] and `weight` float32
      [G, Q, 4] (interpolation of the learned positions), `row_col` int32 [G, Q, 2], `valid` bool [G, Q],
      `tokens` int32 [N] (where each image token stands among the merged patches; padded with 0).

    Raises:
      InputError: sizes that do not fit together.
    """
    merge = config.spatial_merge_size
    frames = [(int(h), int(w)) for t, h, w in grid_thw for _ in range(int(t))]
    counts = [h * w for h, w in frames]
    if any(h % merge or w % merge or h * w == 0 for h, w in frames):
        raise InputError(f"image_grid_thw: heights and widths must be positive multiples of {merge}")
    if pixel_values.shape != (sum(counts), config.patch_dim):
        raise InputError(
            f"pixel_values has shape {pixel_values.shape}, image_grid_thw asks for {(sum(counts), config.patch_dim)}"
        )
    size, per_frame = bucket(len(frames), 1), bucket(max(counts), merge**2)
    pixels = np.zeros((size, per_frame, config.patch_dim), np.float32)
    where: dict[str, np.ndarray] = {
        "table": np.zeros((size, per_frame, 4), np.int32),
        "weight": np.zeros((size, per_frame, 4), np.float32),
        "row_col": np.zeros((size, per_frame, 2), np.int32),
        "valid": np.zeros((size, per_frame), bool),
    }
    tokens = np.zeros(bucket(sum(counts) // merge**2, 1), np.int32)
    done = placed = 0
    for i, (frame, count) in enumerate(zip(frames, counts, strict=True)):
        pixels[i, :count] = pixel_values[done : done + count]
        for key, values in _frame_positions(config, *frame).items():
            where[key][i, :count] = values
        merged = count // merge**2
        tokens[placed : placed + merged] = i * (per_frame // merge**2) + np.arange(merged)
        done, placed = done + count, placed + merged
    return pixels, where | {"tokens": tokens}
