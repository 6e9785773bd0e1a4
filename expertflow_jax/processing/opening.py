"""From a file, a data: URL, a PIL image or an array to an RGB image, within limits of memory.

Only six formats are tried: for some others Pillow would start programs (Ghostscript for EPS).
"""

import io
import logging
import stat
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError

from expertflow_jax.errors import InputError, brief
from expertflow_jax.processing.content import image_source

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")
MOST_PIXELS = 64_000_000  # of an image as it is stored: 256 MB, and twice that while it is converted
MOST_BYTES = 512 << 20  # of a file
ROWS = 512  # laid on white at once

logging.getLogger("PIL").addHandler(logging.NullHandler())  # else its remarks on odd files come on the screen


def open_image(source: Any) -> Image.Image:
    """An RGB image of a path, data: URL, the bytes of a file, a PIL image or uint8 [H, W] or [H, W, 3].

    As in transformers, a file is turned upright by its EXIF tag and loses its alpha channel, while an opened image is
    not turned and is laid on white. A JPEG file of more than 64 million pixels is decoded at a half, a quarter or an
    eighth of its size.

    Raises:
      InputError: the file is missing, no image or too large, or the array has another form.
    """
    source = image_source(source) if isinstance(source, str) else source
    if isinstance(source, str | Path | bytes):
        name = "of a data: URL" if isinstance(source, bytes) else brief(str(source), 300)
        return _readable(name, lambda: _upright(source))
    if isinstance(source, Image.Image):
        return _readable(getattr(source, "filename", "") or "given", lambda: _on_white(source))
    array = np.asarray(source)
    if array.dtype != np.uint8 or array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] != 3):
        raise InputError(f"image array: want uint8 [height, width, 3], got {array.dtype} {array.shape}")
    return Image.fromarray(array).convert("RGB")


def quiet_open(file: Any) -> ImageFile.ImageFile:
    """An image of one of the formats, not yet decoded, without Pillow's warning of its size (see `check_pixels`)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return Image.open(file, formats=FORMATS)


def _upright(source: str | Path | bytes) -> Image.Image:
    if not isinstance(source, bytes):
        status = Path(source).stat()
        if not stat.S_ISREG(status.st_mode):
            raise OSError("no regular file")
        if status.st_size > MOST_BYTES:
            raise OSError(f"{status.st_size:,} bytes, at most {MOST_BYTES:,} are read")
    with quiet_open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
        _reduce(image)
        check_pixels(image)
        image.load()
        ImageOps.exif_transpose(image, in_place=True)
        # Laid on white only where a palette's transparent colour outlives the conversion.
        return _on_white(image if image.mode == "RGB" else image.convert("RGB"))


def _reduce(image: ImageFile.ImageFile) -> None:
    """Has a large JPEG decoded at the largest size that is within the limit; other formats cannot do so."""
    wide, high = image.size
    if wide * high > MOST_PIXELS:
        scale = next((scale for scale in (2, 4) if wide * high <= MOST_PIXELS * scale**2), 8)
        image.draft(None, (max(wide // scale, 1), max(high // scale, 1)))


def check_pixels(image: Image.Image) -> None:
    """Raises OSError if the image has more pixels than are decoded."""
    if image.width * image.height > MOST_PIXELS:
        raise OSError(f"{image.width} x {image.height} pixels, at most {MOST_PIXELS:,} are read; make it smaller")


def _on_white(image: Image.Image) -> Image.Image:
    """An RGB image; what is transparent becomes white."""
    check_pixels(image)
    if "A" not in image.getbands() and image.info.get("transparency") is None:
        return image.convert("RGB")
    laid = Image.new("RGB", image.size)
    for top in range(0, image.height, ROWS):  # the steps between take four times the memory
        strip = image.crop((0, top, image.width, min(top + ROWS, image.height)))
        white = Image.new("RGBA", strip.size, (255, 255, 255, 255))
        laid.paste(Image.alpha_composite(white, strip.convert("RGBA")).convert("RGB"), (0, top))
    return laid


def _readable(source: Any, read: Callable[[], Image.Image]) -> Image.Image:
    """Pillow opens files lazily, so that damage may show only when pixels are asked for."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Pillow, on damage and size, which are either read or refused
            return read()
    except FileNotFoundError as error:
        raise InputError(f"image {source}: no such file") from error
    except UnidentifiedImageError as error:
        raise InputError(f"image {source}: not a readable image; want {', '.join(FORMATS)}") from error
    except MemoryError as error:
        raise InputError(f"image {source}: not a readable image (too large for this machine's memory)") from error
    except Exception as error:  # damaged files fail in Pillow in any way
        text = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"image {source}: not a readable image ({text[:300]})") from error
