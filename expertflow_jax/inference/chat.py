"""What a caller may ask a model with: texts, conversations with images, or token ids, as encoded prompts."""

import itertools
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from expertflow_jax.errors import InputError
from expertflow_jax.inference.arrays import as_array, token_rows
from expertflow_jax.processing import Processor, check_messages
from expertflow_jax.processing.batching import Prompt
from expertflow_jax.processing.content import split_pictures

Message = Mapping[str, Any]

FORMS = "a text, a list of texts, a conversation (list of messages), a list of conversations, or token ids"


def encode_prompts(
    processor: Processor | None, where: str, prompts: Any, images: Any, vocabulary: int = 2**31 - 1
) -> list[Prompt]:
    """Encodes prompts of any form, see `OffloadedModel.generate`.

    Args:
      processor: of the checkpoint; None if it has no tokenizer, so that only token ids will do.
      where: the checkpoint, for messages.
      prompts: a text or several, a conversation (or one message of it) or several, token ids int [B, T] or [T], or
        lists of them of different lengths.
      images: one image; of texts, one each, a list of some each, or None; of conversations, those of all their image
        items in order, or a list of some for each.
      vocabulary: token ids are below it.

    Raises:
      InputError: no prompts, text without a tokenizer, images that have no place, or token ids that are none.
    """
    entries = _entries(prompts)
    if _holds_numbers(entries[0]):
        if images is not None:
            raise InputError("generate: images go with texts; give token ids together with pixel_values")
        return [Prompt(row) for row in token_rows("input_ids", prompts, vocabulary)]
    if processor is None:
        raise InputError(f"{where} has no tokenizer.json; pass token ids instead of text")
    pictures = _pictures(images)
    if any(picture is not None for picture in pictures) and not processor.takes_images:
        raise InputError(f"{where} takes no images (no preprocessor_config.json); leave them out")
    if isinstance(entries[0], str):
        return _text_prompts(processor, entries, pictures)
    return _chat_prompts(processor, [entries] if isinstance(entries[0], Mapping) else entries, pictures)


def _entries(prompts: Any) -> list[Any]:
    """The prompts, or the messages of one conversation, as a list."""
    if isinstance(prompts, str | Mapping):
        return [prompts]
    if isinstance(prompts, bytes) or not (hasattr(prompts, "__iter__") or hasattr(prompts, "__array__")):
        raise InputError(f"generate: {type(prompts).__name__} is no prompt; give {FORMS}")
    entries = prompts if isinstance(prompts, Sequence) else np.atleast_1d(as_array("generate: prompts", prompts))
    entries = list(entries)
    if not entries:
        raise InputError("generate: no prompts")
    return entries


def _holds_numbers(entry: Any) -> bool:
    """Whether the first prompt is token ids, or the first of them."""
    if isinstance(entry, list | tuple):
        return not entry or isinstance(entry[0], int | float | np.generic)
    return not isinstance(entry, str | Mapping)


def _is_image(value: Any) -> bool:
    """Whether this stands for one image, rather than for several."""
    if isinstance(value, str | bytes | os.PathLike | Image.Image | Mapping):
        return True
    return hasattr(value, "__array__") and np.ndim(value) < 4


def _pictures(images: Any) -> list[Any]:
    """The images as a list."""
    if images is None:
        return []
    if _is_image(images):
        return [_as_pixels(images)]
    if not hasattr(images, "__iter__"):
        raise InputError(f"images: {type(images).__name__} is none; give paths, PIL images or uint8 [height, width, 3]")
    return [_as_pixels(image) if image is None or _is_image(image) else _pictures(image) for image in images]


def _as_pixels(image: Any) -> Any:
    """Arrays of other libraries as NumPy's; everything else as it is."""
    if isinstance(image, Mapping):
        raise InputError("images: an object is none; give paths, PIL images or uint8 [height, width, 3]")
    if isinstance(image, Image.Image) or not hasattr(image, "__array__"):
        return image
    return as_array("images", image)


def _text_prompts(processor: Processor, texts: Sequence[Any], pictures: list[Any]) -> list[Prompt]:
    if pictures and len(pictures) != len(texts):
        remedy = "images=[[first, second]] gives one prompt several" if len(texts) == 1 else "give one each, or None"
        raise InputError(f"generate: {len(pictures)} images for {len(texts)} prompts; {remedy}")
    prompts = []
    for place, (text, picture) in enumerate(zip(texts, pictures or itertools.repeat(None), strict=False)):
        if not isinstance(text, str):
            raise InputError(f"generate: prompt {place} is {type(text).__name__}, others are text; give {FORMS}")
        _check_text(text, f"prompt {place}")
        images = _pictures(picture)
        if not images and not processor.has_template:  # a base model continues the text
            prompts.append(_prompt(processor, text, [], add_special_tokens=True))
            continue
        items = [{"type": "text", "text": text}, *({"type": "image"} for _ in images)]
        content: Any = items if processor.takes_images else text
        prompts.append(_chat(processor, [{"role": "user", "content": content}], images))
    return prompts


def _chat_prompts(processor: Processor, conversations: list[Any], pictures: list[Any]) -> list[Prompt]:
    turns, sources = [], []
    for place, messages in enumerate(conversations):
        where = "messages" if len(conversations) == 1 else f"conversation {place}"
        check_messages(messages, where)
        turn, inside = split_pictures(messages, where)
        turns.append(turn)
        sources.append(inside)
    wanted = [sum(source is None for source in inside) for inside in sources]
    beside = _share_out(pictures, wanted)
    prompts = []
    for messages, inside, images in zip(turns, sources, beside, strict=True):
        rest = iter(images)
        prompts.append(_chat(processor, messages, [next(rest) if source is None else source for source in inside]))
    return prompts


def _share_out(pictures: list[Any], wanted: Sequence[int]) -> list[list[Any]]:
    """The images that are given beside conversations, for each as many as it wants."""
    nested = any(isinstance(picture, list | tuple) for picture in pictures)
    if nested and len(pictures) == len(wanted):
        shares = [_pictures(picture) for picture in pictures]
    else:
        flat = [image for picture in pictures for image in _pictures(picture)] if nested else pictures
        rest = iter(flat)
        shares = [list(itertools.islice(rest, count)) for count in wanted]
        if left := len(list(rest)):
            raise InputError(
                f"generate: {left} images more than the conversations have places for; write an item "
                '{"type": "image"} where each belongs'
            )
    for place, (count, share) in enumerate(zip(wanted, shares, strict=True)):
        if count != len(share):
            raise InputError(
                f"generate: conversation {place} has {count} image placeholders (items of type image that hold none), "
                f"{len(share)} images were given for them; give images=[...] with one each, in order"
            )
    return shares


def _chat(processor: Processor, messages: Sequence[Message], images: list[Any]) -> Prompt:
    text = processor.apply_chat_template(messages, add_generation_prompt=True)
    # A template writes the special tokens itself.
    return _prompt(processor, text, images, add_special_tokens=False)


def _prompt(processor: Processor, text: str, images: list[Any], add_special_tokens: bool) -> Prompt:
    inputs = processor.encode(text, images, add_special_tokens=add_special_tokens)
    if not len(inputs.input_ids):
        raise InputError("a prompt is empty; write at least one token's worth of text")
    return Prompt(inputs.input_ids, inputs.pixel_values, inputs.image_grid_thw)


def _check_text(text: str, what: str) -> None:
    """Refuses half characters, which no tokenizer can read."""
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise InputError(f"{what}: it holds bytes that are not UTF-8 (lone surrogates); decode it properly first")
