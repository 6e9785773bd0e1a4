"""Reading benchmark files with errors that say which file, where in it, and what to do."""

import io
import json
from pathlib import Path
from typing import Any

from PIL import UnidentifiedImageError

from expertflow_jax.errors import InputError, brief
from expertflow_jax.files import read_whole
from expertflow_jax.processing.opening import FORMATS, check_pixels, quiet_open


def read_utf8(path: Path, source: str) -> str:
    """A text in UTF-8; `source` says where the official file comes from."""
    content = read_whole(path, f"get it from {source}")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text ({error}); download it again from {source}") from error


def read_json(path: Path, source: str) -> dict[str, Any]:
    """A JSON object; `source` says where the official file comes from."""
    text = read_utf8(path, source)
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not JSON ({error}); download it again from {source}") from error
    if not isinstance(value, dict):
        raise InputError(f"{path}: want a JSON object; download it again from {source}")
    return value


def field(path: Path, where: str, record: Any, key: str, kind: type) -> Any:
    """`record[key]`, which must be of `kind`."""
    if not isinstance(record, dict) or key not in record:
        raise InputError(f"{path}: {where} has no {key!r}")
    if not isinstance(record[key], kind) or isinstance(record[key], bool):
        raise InputError(f"{path}: {where}: {key!r} is {record[key]!r}, want {kind.__name__}")
    return record[key]


def rgb_bytes(data: bytes, where: str) -> bytes:
    """The encoded image as it is if it decodes to RGB, else (grey, palette, alpha) as an RGB PNG.

    Raises:
      InputError: not a whole image.
    """
    try:
        with quiet_open(io.BytesIO(data)) as image:
            check_pixels(image)
            image.load()
            if image.mode == "RGB":
                return data
            converted = io.BytesIO()
            image.convert("RGB").save(converted, "PNG")
            return converted.getvalue()
    except UnidentifiedImageError as error:
        raise InputError(f"{where}: not a readable image; want {', '.join(FORMATS)}; download it again") from error
    except Exception as error:  # damaged files fail in Pillow in any way
        reason = brief(" ".join(str(error).split()) or type(error).__name__, 300)
        raise InputError(f"{where}: not a readable image ({reason}); download it again") from error
