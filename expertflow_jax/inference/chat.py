"""What a caller may ask a model with: texts, conversations with images, or token ids, as encoded prompts."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from expertflow_jax.errors import InputError
from expertflow_jax.processing import Processor, check_messages
from expertflow_jax.processing.batching import Prompt

Message = Mapping[str, Any]


def encode_prompts(processor: Processor | None, where: str, prompts: Any, images: Sequence[Any] | None) -> list[Prompt]:
    """Encodes prompts of any form, see `OffloadedModel.generate`.

    Args:
      processor: of the checkpoint; None if it has no tokenizer, so that only token ids will do.
      where: the checkpoint, for messages.
      prompts: a text or several, a conversation or several, token ids int [B, T], or ragged lists of them.
      images: of texts, one each or None; of conversations, those of all their image items in order.

    Raises:
      InputError: no prompts, text without a tokenizer, images that have no place, or token ids that are none.
    """
    if isinstance(prompts, str):
        prompts = [prompts]
    if len(prompts) == 0:
        raise InputError("generate: no prompts")
    if isinstance(prompts, np.ndarray) or isinstance(prompts[0], np.ndarray) or _is_number(prompts[0], deep=True):
        return _token_prompts(prompts)
    if processor is None:
        raise InputError(f"{where} has no tokenizer.json; pass token ids instead of text")
    given = list(images) if images is not None else []
    if any(image is not None for image in given) and not processor.takes_images:
        raise InputError(f"{where} takes no images (no preprocessor_config.json); leave them out")
    if isinstance(prompts[0], str):
        return _text_prompts(processor, prompts, given)
    conversations = [prompts] if isinstance(prompts[0], Mapping) else list(prompts)
    return _chat_prompts(processor, conversations, given)


def _is_number(value: Any, deep: bool) -> bool:
    if isinstance(value, int | np.integer) and not isinstance(value, bool):
        return True
    return deep and isinstance(value, list | tuple) and len(value) > 0 and _is_number(value[0], deep=False)


def _token_prompts(prompts: Any) -> list[Prompt]:
    flat = _is_number(prompts[0], deep=False)
    rows = [np.asarray(row) for row in ([prompts] if flat else prompts)]
    for row in rows:
        if row.ndim != 1 or not len(row) or not np.issubdtype(row.dtype, np.integer):
            raise InputError(f"input_ids: want integers [B, T] or lists of them, got {row.dtype} {row.shape} in a row")
    return [Prompt(row.astype(np.int32)) for row in rows]


def _text_prompts(processor: Processor, texts: Sequence[str], images: list[Any]) -> list[Prompt]:
    if images and len(images) != len(texts):
        raise InputError(f"generate: {len(images)} images for {len(texts)} prompts; give one each, or None")
    found = []
    for text, image in zip(texts, images or [None] * len(texts), strict=True):
        if image is None and not processor.has_template:  # a base model continues the text
            found.append(_prompt(processor, text, [], add_special_tokens=True))
            continue
        items = [{"type": "text", "text": text}, {"type": "image"}]
        content: Any = items if image is not None else (items[:1] if processor.takes_images else text)
        found.append(_chat(processor, [{"role": "user", "content": content}], [] if image is None else [image]))
    return found


def _chat_prompts(processor: Processor, conversations: list[Any], images: list[Any]) -> list[Prompt]:
    found = []
    rest = iter(images)
    for messages in conversations:
        check_messages(messages, "messages")
        contents = [m["content"] for m in messages if isinstance(m.get("content"), list | tuple)]
        places = sum(item.get("type") == "image" for content in contents for item in content)
        found.append(_chat(processor, list(messages), [image for _, image in zip(range(places), rest, strict=False)]))
    if left := len(list(rest)):
        raise InputError(f"generate: {left} images more than the conversations have places for")
    return found


def _chat(processor: Processor, messages: list[Message], images: list[Any]) -> Prompt:
    text = processor.apply_chat_template(messages, add_generation_prompt=True)
    # A template writes the special tokens itself.
    return _prompt(processor, text, images, add_special_tokens=False)


def _prompt(processor: Processor, text: str, images: list[Any], add_special_tokens: bool) -> Prompt:
    inputs = processor.encode(text, images, add_special_tokens=add_special_tokens)
    if not len(inputs.input_ids):
        raise InputError("a prompt is empty; write at least one token's worth of text")
    return Prompt(inputs.input_ids, inputs.pixel_values, inputs.image_grid_thw)
