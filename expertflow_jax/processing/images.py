"""Image preprocessing of Qwen2-VL and Qwen3-VL, from the checkpoint's preprocessor_config.json, without torch.

Resize to multiples of patch * merge within a pixel range, rescale, normalise, cut into patches in merge-block order.
Axes: P patches.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float32, Int, Int64
from PIL import Image

from expertflow_jax.errors import InputError
from expertflow_jax.processing.opening import open_image
from expertflow_jax.processing.patches import normalise, patchify
from expertflow_jax.processing.settings import MOST_PIXELS, Settings

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
    resample: int = Image.Resampling.BICUBIC
    context: int | None = None  # tokens that the model reads at most

    @staticmethod
    def from_config(values: Mapping[str, Any], where: str, context: int | None = None) -> "ImageProcessor":
        """
        Args:
          values: of preprocessor_config.json.
          where: the file, for messages.
          context: tokens that the model reads at most.

        Raises:
          InputError: naming a key that is missing, of the wrong kind or out of range.
        """
        settings = Settings(values, where)
        settings.must_be_true("do_rescale", "do_normalize")
        patch, frames = settings.whole("patch_size", most=256), settings.whole("temporal_patch_size", most=16)
        merge, size = settings.whole("merge_size", most=16), settings.section("size")
        least, most = (
            settings.whole(key, most=2**53) if settings.has(key) else size.whole(other, most=2**53)
            for key, other in (("min_pixels", "shortest_edge"), ("max_pixels", "longest_edge"))
        )
        processor = ImageProcessor(
            patch_size=patch,
            temporal_patch_size=frames,
            merge_size=merge,
            min_pixels=least,
            max_pixels=most,
            mean=settings.channels("image_mean"),
            std=settings.channels("image_std", positive=True),
            rescale_factor=settings.positive("rescale_factor", 1 / 255),
            do_resize=settings.flag("do_resize", True),
            resample=settings.one_of("resample", Image.Resampling.BICUBIC, [*Image.Resampling]),
            context=context,
        )
        tokens = least // (patch * merge) ** 2
        if least > min(most, MOST_PIXELS) or tokens > (context or tokens):
            raise InputError(
                f"{where}: shortest_edge or min_pixels makes images of at least {least:,} pixels, {tokens:,} tokens; "
                f"want at most {min(most, MOST_PIXELS):,} pixels" + (f" and {context:,} tokens" if context else "")
            )
        return processor

    def tokens(self, grids: Int[np.ndarray, "3"]) -> int:
        """Tokens of an image of grid int [3]."""
        return int(grids.prod()) // self.merge_size**2

    def __call__(self, source: Any) -> tuple[Float32[np.ndarray, "P patch_dim"], Int64[np.ndarray, "3"]]:
        """Patches float32 [P, channels * temporal * patch ** 2] and int64 [3], patches in time, height and width.

        Raises:
          InputError: see `open_image`; or it is too long, too large for the model, or, where images are not resized,
            no multiple of the patches.
        """
        image = open_image(source)
        factor = self.patch_size * self.merge_size
        if self.do_resize:
            high, wide = smart_resize(image.height, image.width, factor, self.min_pixels, self.max_pixels)
            self._check_size(high, wide)
            if (wide, high) != image.size:
                image = image.resize((wide, high), Image.Resampling(self.resample))
        elif min(image.size) < 1 or image.width % factor or image.height % factor:
            raise InputError(
                f"an image of {image.width} x {image.height} pixels is not resized, by do_resize of "
                f"preprocessor_config.json, and its sides are no multiples of {factor}; crop it"
            )
        self._check_size(image.height, image.width)
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

    def _check_size(self, high: int, wide: int) -> None:
        tokens = high * wide // (self.patch_size * self.merge_size) ** 2
        if high * wide > MOST_PIXELS or tokens > (self.context or tokens):
            raise InputError(
                f"an image becomes {wide} x {high} pixels, {tokens:,} tokens; at most {MOST_PIXELS:,} pixels"
                + (f" and {self.context:,} tokens" if self.context else "")
                + " are read: make it smaller, or lower longest_edge in preprocessor_config.json"
            )
