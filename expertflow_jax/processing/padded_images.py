"""Image preprocessing of Aria, from the checkpoint's preprocessor_config.json, without torch.

The longer side becomes `max_image_size`, zeros fill up the square below and to the right. With `split_image` an image
is first fitted into the best of some sizes and cut into crops, each of which is an image of its own. Axes: P patches,
n crops, S pixels to a side.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32, Int, Int64
from PIL import Image

from expertflow_jax.errors import InputError
from expertflow_jax.models.aria_layout import pack
from expertflow_jax.processing.opening import open_image
from expertflow_jax.processing.settings import MOST_PIXELS, Settings

CROP = 490
MOST_CROPS = 256  # of one image; published models have up to 8
# Sizes that an image may be fitted into, in crops of 490 pixels: high, wide.
SPLITS = [(1, n) for n in range(2, 9)] + [(2, 4), (2, 3), (2, 2), (2, 1), (3, 1), (3, 2), (4, 1), (4, 2)]
SPLITS += [(n, 1) for n in range(5, 9)]
RESOLUTIONS = tuple((CROP * high, CROP * wide) for high, wide in SPLITS)
TOKENS = {"490": 128, "980": 256}


def best_size(high: int, wide: int, sizes: tuple[tuple[int, int], ...]) -> tuple[int, int]:
    """The size, of those given, that keeps most of an image's pixels, and of these the one that wastes least."""

    def worth(size: tuple[int, int]) -> tuple[int, int]:
        scale = min(size[1] / wide, size[0] / high)
        pixels = min(int(wide * scale) * int(high * scale), high * wide)
        return pixels, pixels - size[0] * size[1]

    return max(sizes, key=worth)


def fitted(high: int, wide: int, size: tuple[int, int]) -> tuple[int, int]:
    """Height and width of an image that fills one side of `size` and keeps its aspect ratio."""
    by_width, by_height = size[1] / wide, size[0] / high
    if by_width < by_height:
        return min(math.ceil(high * by_width), size[0]), size[1]
    return size[0], min(math.ceil(wide * by_height), size[1])


@dataclasses.dataclass(frozen=True)
class PaddedImageProcessor:
    """What preprocessor_config.json, processor_config.json and the vision tower's patch size say."""

    patch_size: int
    max_image_size: int = 980
    min_image_size: int = 336
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.5, 0.5, 0.5)
    rescale_factor: float = 1 / 255
    split_image: bool = False
    split_resolutions: tuple[tuple[int, int], ...] = RESOLUTIONS
    resample: int = Image.Resampling.BICUBIC
    image_tokens: tuple[tuple[int, int], ...] = tuple(
        (int(size), count) for size, count in TOKENS.items()
    )  # of an image or crop, by max_image_size

    @staticmethod
    def from_config(
        values: Mapping[str, Any], patch_size: Any, size_conversion: Any, where: str
    ) -> "PaddedImageProcessor":
        """Reads what differs from the defaults.

        Args:
          values: of preprocessor_config.json.
          patch_size: of the vision tower.
          size_conversion: tokens of an image by its size, or None.
          where: the file, for messages.

        Raises:
          InputError: a value is of the wrong kind or not supported, or there is no number of tokens for the images'
            size.
        """
        settings = Settings(values, where)
        settings.must_be_true("do_rescale", "do_normalize")
        where_tokens = "processor_config.json: size_conversion"
        conversion = Settings(TOKENS if size_conversion is None else size_conversion, where_tokens)
        largest = settings.whole("max_image_size", 980, most=4096)
        if not conversion.has(str(largest)):
            raise InputError(
                f"{where}: max_image_size {largest} has no number of tokens in size_conversion of "
                f"processor_config.json, which knows {', '.join(map(str, conversion.values))[:100]}"
            )
        tokens = conversion.whole(str(largest), most=1_000_000)
        smallest = settings.whole("min_image_size", 336, most=4096)
        if smallest > largest:
            raise InputError(f"{where}: min_image_size {smallest} must be from 1 to max_image_size")
        tower = Settings({"patch_size": patch_size}, "config.json: vision_config")
        patch = tower.whole("patch_size", most=256)
        if patch > largest:
            raise InputError(f"{where}: max_image_size {largest} is smaller than a patch of {patch} pixels")
        resolutions = settings.pairs("split_resolutions", RESOLUTIONS, most=MOST_PIXELS)
        if max(-(-high // largest) * -(-wide // largest) for high, wide in resolutions) > MOST_CROPS:
            raise InputError(
                f"{where}: split_resolutions makes more than {MOST_CROPS} crops of {largest} pixels a side"
            )
        return PaddedImageProcessor(
            patch,
            max_image_size=largest,
            min_image_size=smallest,
            mean=settings.channels("image_mean", (0.5,) * 3),
            std=settings.channels("image_std", (0.5,) * 3, positive=True),
            rescale_factor=settings.positive("rescale_factor", 1 / 255),
            split_image=settings.flag("split_image", False),
            split_resolutions=resolutions,
            resample=settings.one_of("resample", Image.Resampling.BICUBIC, [*Image.Resampling]),
            image_tokens=((largest, tokens),),
        )

    def tokens(self, grids: Int[np.ndarray, "n 3"]) -> int:
        """Tokens of an image of grids int [n, 3]."""
        return len(grids) * dict(self.image_tokens)[self.max_image_size]

    def __call__(self, source: Any) -> tuple[Float32[np.ndarray, "P patch_dim"], Int64[np.ndarray, "n 3"]]:
        """Patches of all crops float32 [P, channels * patch ** 2 + 1] with their padding marked, grids int64 [n, 3].

        Raises:
          InputError: see `open_image`; or the image is empty.
        """
        image = open_image(source)
        if min(image.size) < 1:
            raise InputError(f"an image of {image.width} x {image.height} pixels is empty")
        crops = self._split(image) if self.split_image else [image]
        squares, masks = zip(*map(self._padded, crops), strict=True)
        pixels = np.stack(squares).transpose(0, 3, 1, 2)  # [n, 3, S, S]
        return pack(pixels, np.stack(masks), channels=3, patch_size=self.patch_size)

    def _split(self, image: Image.Image) -> list[Image.Image]:
        """The image in the middle of the best size, cut into squares of `max_image_size`, those at the edge smaller."""
        target = best_size(image.height, image.width, self.split_resolutions)
        high, wide = fitted(image.height, image.width, target)
        whole = Image.new("RGB", target[::-1])
        whole.paste(
            image.resize((wide, high), self._filter),
            ((target[1] - wide) // 2, (target[0] - high) // 2),
        )
        step = self.max_image_size
        return [
            whole.crop((left, top, min(left + step, target[1]), min(top + step, target[0])))
            for top in range(0, target[0], step)
            for left in range(0, target[1], step)
        ]

    def _padded(self, image: Image.Image) -> tuple[Float32[np.ndarray, "S S 3"], Bool[np.ndarray, "S S"]]:
        """float32 [S, S, 3], normalised, and bool [S, S], false on padding."""
        size = self.max_image_size
        scale = size / max(image.size)
        if image.width >= image.height:
            wide, high = size, max(int(image.height * scale), self.min_image_size)
        else:
            wide, high = max(int(image.width * scale), self.min_image_size), size
        square, seen = np.zeros((size, size, 3), np.uint8), np.zeros((size, size), bool)
        square[:high, :wide], seen[:high, :wide] = np.asarray(image.resize((wide, high), self._filter)), True
        rescaled = (square.astype(np.float64) * self.rescale_factor).astype(np.float32)
        return (rescaled - np.array(self.mean, np.float32)) / np.array(self.std, np.float32), seen

    @property
    def _filter(self) -> Image.Resampling:
        return Image.Resampling(self.resample)
