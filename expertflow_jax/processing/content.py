"""What the items of a message hold: text, or a picture, in the forms that transformers and OpenAI's clients write.

{"type": "text", "text": "..."}
{"type": "image"}                            the next of the images that are given beside the messages
{"type": "image", "image": SOURCE}           or "path", "url"; "base64": the file's bytes in base64
{"type": "image_url", "image_url": {"url": SOURCE}}

A SOURCE is a path, a data: or file: URL, a PIL image, or a uint8 array [height, width, 3] or [height, width]. Nothing
is ever downloaded. Any other item is refused: templates leave out what they don't know, so that it would vanish.
"""

import base64
import binascii
import urllib.parse
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from expertflow_jax.errors import InputError

ACCEPTED = (
    'want {"type": "text", "text": ...}, {"type": "image"}, {"type": "image", "image": path, data: URL, PIL image or '
    'array} or {"type": "image_url", "image_url": {"url": ...}}'
)
SOURCE_KEYS = ("image", "path", "url", "base64", "image_url")
MEDIA_KEYS = ("image", "images", "image_url", "audio", "audios", "video", "videos")  # beside content nobody reads them
HARMLESS_KEYS = {"type", "detail", "id", "cache_control"}  # other services' settings, of no meaning here


def split_pictures(messages: Sequence[Mapping[str, Any]], where: str) -> tuple[list[dict[str, Any]], list[Any]]:
    """A conversation without what its pictures hold, and the pictures, in order.

    Args:
      messages: role and content; content is text or a list of items.
      where: what to name in an error: the argument, or file and line.

    Returns:
      The messages, each picture {"type": "image"}, and for each picture its source (see `image_source`), or None if it
      is the next of the images that are given beside the messages.

    Raises:
      InputError: an item of another kind, a picture that is to be downloaded or is no picture, or one beside the
        content.
    """
    turns, pictures = [], []
    for number, message in enumerate(messages):
        turn = dict(message)
        if beside := [key for key in MEDIA_KEYS if turn.get(key) not in (None, "", [], ())]:
            raise InputError(
                f'{where}: message {number}: "{beside[0]}" beside "content" is not read; put it among the items of '
                f'"content": {ACCEPTED}'
            )
        if isinstance(turn.get("content"), list | tuple):
            items = []
            for place, item in enumerate(turn["content"]):
                name = f"{where}: message {number}, item {place}"
                if is_picture(item, name):
                    pictures.append(_source_of(item, name))
                    item = {"type": "image"}
                items.append(item)
            turn["content"] = items
        turns.append(turn)
    return turns, pictures


def is_picture(item: Any, where: str) -> bool:
    """Whether a content item is a picture; it is text otherwise.

    Raises:
      InputError: it is neither.
    """
    if not isinstance(item, Mapping):
        raise InputError(f"{where}: {_short(item)} is no content item; {ACCEPTED}")
    keys = [key for key in SOURCE_KEYS if item.get(key) is not None]
    kind = item.get("type", "text" if "text" in item else "image" if keys else None)
    if kind == "text":
        if keys or not isinstance(item.get("text"), str):
            raise InputError(f"{where}: {_short(item)} is no text; {ACCEPTED}")
        return False
    others = set(item) - HARMLESS_KEYS - set(SOURCE_KEYS)
    if kind not in ("image", "image_url") or others or len(keys) > 1 or (kind == "image_url" and not keys):
        raise InputError(f"{where}: {_short(item)} is neither text nor an image; {ACCEPTED}")
    return True


def image_source(value: Any, where: str = "images") -> Any:
    """A picture as `open_image` reads it: a path, the bytes of a file, a PIL image or an array.

    Args:
      value: a path, a data: or file: URL, the bytes of a file, a PIL image or a uint8 array.

    Raises:
      InputError: anything else; no URL of another kind is read.
    """
    if isinstance(value, Path | Image.Image | np.ndarray | bytes):
        return value
    if hasattr(value, "__array__"):  # of another library
        return np.asarray(value)
    if not isinstance(value, str):
        raise InputError(f"{where}: {_short(value)} is no image; want a path, a data: URL, a PIL image or an array")
    scheme = value[:8].lower()
    if scheme.startswith("data:"):
        head, comma, data = value.partition(",")
        if not comma or not head.lower().endswith(";base64"):
            raise InputError(f"{where}: {_short(value)} is no data: URL of an image in base64")
        return _decoded(data, where)
    if scheme.startswith("file:"):
        return Path(urllib.request.url2pathname(urllib.parse.urlparse(value).path))
    if "://" in value[:32]:
        raise InputError(f"{where}: {_short(value)}: nothing is downloaded; download it and pass the file")
    return value


def _source_of(item: Mapping[str, Any], where: str) -> Any:
    for key in SOURCE_KEYS:
        value = item.get(key)
        if value is None:
            continue
        if key == "image_url" and isinstance(value, Mapping):
            value = value.get("url")
        if key == "base64" and isinstance(value, str) and not value.startswith("data:"):
            return _decoded(value, where)
        return image_source(value, where)
    return None


def _decoded(data: str, where: str) -> bytes:
    try:
        return base64.b64decode("".join(urllib.parse.unquote(data).split()), validate=True)
    except (ValueError, binascii.Error) as error:
        raise InputError(f"{where}: {_short(data)} is not base64 ({error})") from error


def _short(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_short(key)}: {_short(entry)}" for key, entry in [*value.items()][:4]) + "}"
    if not isinstance(value, str | int | float | bool | None):
        return f"<{type(value).__name__}>"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:50]}...{text[-1]}"
