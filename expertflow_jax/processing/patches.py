"""From pixels to patches, in the order of Hugging Face's Qwen2-VL image processor (which Qwen3-VL uses).

Axes: B images, H height, W width in pixels, P patches.
"""

import numpy as np
from jaxtyping import Float, Float32, UInt8


def patchify(
    images: Float32[np.ndarray, "B H W channels"], *, patch_size: int, temporal_patch_size: int, merge_size: int
) -> Float32[np.ndarray, "B P patch_dim"]:
    """Cuts images of one size into patches in merge-block order; a still image fills all its frames.

    Args:
      images: float32 [B, H, W, channels], normalised; H and W multiples of patch_size * merge_size.

    Returns:
      float32 [B, P, channels * temporal_patch_size * patch_size ** 2].
    """
    batch, height, width, channels = images.shape
    high, wide = height // patch_size, width // patch_size
    blocks = images.reshape(
        batch,
        high // merge_size,
        merge_size,
        patch_size,
        wide // merge_size,
        merge_size,
        patch_size,
        channels,
    )
    blocks = blocks.transpose(0, 1, 4, 2, 5, 7, 3, 6).reshape(batch, high * wide, channels, 1, patch_size**2)
    blocks = np.broadcast_to(blocks, (batch, high * wide, channels, temporal_patch_size, patch_size**2))
    return np.ascontiguousarray(blocks, dtype=np.float32).reshape(batch, high * wide, -1)


def normalise(
    images: UInt8[np.ndarray, "... channels"],
    *,
    rescale: float,
    mean: Float[np.ndarray, "channels"],
    std: Float[np.ndarray, "channels"],
) -> Float32[np.ndarray, "... channels"]:
    """uint8 [..., channels] to float32: (pixel * rescale - mean) / std, folded as transformers folds it."""
    scaled_mean = np.asarray(mean, np.float32) * np.float32(1.0 / rescale)
    scaled_std = np.asarray(std, np.float32) * np.float32(1.0 / rescale)
    pixels = images.astype(np.float32)
    pixels -= scaled_mean
    pixels /= scaled_std
    return pixels
