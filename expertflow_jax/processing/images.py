"""Image preprocessing of Qwen2-VL and Qwen3-VL, from the checkpoint's preprocessor_config.json, without torch.

Resize to multiples of patch * merge within a pixel range, rescale, normalise, cut into patches in merge-block order.
Axes: P patches.
"""

import dataclasses
import io
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from expertflow_jax.errors import InputError
from expertflow_jax.processing.content import image_source
from expertflow_jax.processing.patches import normalise, patchify

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")  # Pillow would start Ghostscript for others
MOST_ELONGATED = 200  # longer : shorter side, as Hugging Face's processor has it


def smart_resize(height: int, width: int, factor: int, min_pixels: int, max_pixels: int) -> tuple[int, int]:
    """Height and width as multiples of `factor`, near the aspect ratio, with an area within the range.

    Raises:
      InputError: the image is empty or more than 200 times as long as wide.
    """
    if min(height, width) < 1:
        raise InputError(f"an image of {width} x {height} pixels is empty")
    if max(height, width) / min(height, width) > MOST_ELONGATED:
        raise InputError(f"an image of {width} x {height} pixels is more elongated than {MOST_ELONGATED} : 1; crop it")
    high, wide = round(height / factor) * factor, round(width / factor) * factor
    if high * wide > max_pixels:
        beta = math.sqrt(height * width / max_pixels)
        high = max(factor, math.floor(height / beta / factor) * factor)
        wide = max(factor, math.floor(width / beta / factor) * factor)
    elif high * wide < min_pixels:
        beta = math.sqrt(min_pixels / (height * width))
        high = math.ceil(height * beta / factor) * factor
        wide = math.ceil(width * beta / factor) * factor
    return high, wide


def open_image(source: Any) -> Image.Image:
    """An RGB image of a path, data: URL, the bytes of a file, a PIL image or uint8 [H, W] or [H, W, 3].

    As in transformers, a file is turned upright by its EXIF tag and loses its alpha channel, while an opened image is
    not turned and is laid on white.

    Raises:
      InputError: the file is missing or no image, or the array has another form.
    """
    source = image_source(source) if isinstance(source, str) else source
    if isinstance(source, str | Path | bytes):
        name = "of a data: URL" if isinstance(source, bytes) else source
        return _readable(name, lambda: _on_white(_upright(source)))
    if isinstance(source, Image.Image):
        return _readable(getattr(source, "filename", "") or "given", lambda: _on_white(source))
    array = np.asarray(source)
    if array.dtype != np.uint8 or array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] != 3):
        raise InputError(f"image array: want uint8 [height, width, 3], got {array.dtype} {array.shape}")
    return Image.fromarray(array).convert("RGB")


def _upright(file: str | Path | bytes) -> Image.Image:
    with Image.open(io.BytesIO(file) if isinstance(file, bytes) else file, formats=FORMATS) as image:
        return ImageOps.exif_transpose(image).convert("RGB")  # a palette's transparent colour outlives this


def _on_white(image: Image.Image) -> Image.Image:
    if "A" not in image.getbands() and image.info.get("transparency") is None:
        return image.convert("RGB")
    white = Image.new("RGBA", image.size, (255, 255, 255, 255))
    return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")


def _readable(source: Any, read: Callable[[], Image.Image]) -> Image.Image:
    """Pillow opens files lazily, so that damage may show only when pixels are asked for."""
    try:
        return read()
    except FileNotFoundError as error:
        raise InputError(f"image {source}: no such file") from error
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise InputError(f"image {source}: not a readable image ({error})") from error


@dataclasses.dataclass(frozen=True)
class ImageProcessor:
    """What preprocessor_config.json says."""

    patch_size: int
    temporal_patch_size: int
    merge_size: int
    min_pixels: int
    max_pixels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    rescale_factor: float = 1 / 255
    do_resize: bool = True

    @staticmethod
    def from_config(values: Mapping[str, Any], where: str) -> "ImageProcessor":
        """Raises InputError naming a missing key, or saying what is of the wrong kind."""
        size = values.get("size") or {}
        try:
            return ImageProcessor(
                patch_size=int(values["patch_size"]),
                temporal_patch_size=int(values["temporal_patch_size"]),
                merge_size=int(values["merge_size"]),
                min_pixels=int(values.get("min_pixels") or size["shortest_edge"]),
                max_pixels=int(values.get("max_pixels") or size["longest_edge"]),
                mean=tuple(values["image_mean"]),
                std=tuple(values["image_std"]),
                rescale_factor=float(values.get("rescale_factor", 1 / 255)),
                do_resize=bool(values.get("do_resize", True)),
            )
        except KeyError as error:
            raise InputError(f"{where}: no key {error.args[0]!r}; copy the file from the model's hub page") from error
        except (TypeError, ValueError, AttributeError) as error:
            raise InputError(f"{where}: a value is of the wrong kind ({error})") from error

    def tokens(self, grids: np.ndarray) -> int:
        """Tokens of an image of grid int [3]."""
        return int(grids.prod()) // self.merge_size**2

    def __call__(self, source: Any) -> tuple[np.ndarray, np.ndarray]:
        """Patches float32 [P, channels * temporal * patch ** 2] and int64 [3], patches in time, height and width."""
        image = open_image(source)
        if self.do_resize:
            factor = self.patch_size * self.merge_size
            high, wide = smart_resize(image.height, image.width, factor, self.min_pixels, self.max_pixels)
            if (wide, high) != image.size:
                image = image.resize((wide, high), Image.Resampling.BICUBIC)
        pixels = normalise(
            np.asarray(image), rescale=self.rescale_factor, mean=np.array(self.mean), std=np.array(self.std)
        )
        patches = patchify(
            pixels[None],
            patch_size=self.patch_size,
            temporal_patch_size=self.temporal_patch_size,
            merge_size=self.merge_size,
        )
        grid = np.array([1, image.height // self.patch_size, image.width // self.patch_size], np.int64)
        return patches[0], grid
