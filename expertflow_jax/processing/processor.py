"""Text and images in, model inputs out, from the files of a checkpoint directory alone.

`tokenizer.json` through the tokenizers library, the jinja chat template in a sandbox, images through
`preprocessor_config.json`. Axes: T tokens, P patches.
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Int32, Int64

from expertflow_jax.errors import InputError
from expertflow_jax.models.aria_config import VISION_DEFAULTS
from expertflow_jax.processing.content import split_pictures
from expertflow_jax.processing.images import ImageProcessor
from expertflow_jax.processing.padded_images import PaddedImageProcessor
from expertflow_jax.processing.templates import ChatTemplate, find_template
from expertflow_jax.processing.text_codec import TextCodec
from expertflow_jax.processing.tokens import load_tokenizer, read_optional


@dataclasses.dataclass(frozen=True)
class Inputs:
    """One encoded prompt.

    Attributes:
      input_ids: int32 [T], image placeholders expanded.
      pixel_values: float32 [P, patch_dim] of all its images, or None.
      image_grid_thw: int64 [images, 3], or None.
    """

    input_ids: Int32[np.ndarray, "T"]
    pixel_values: Float32[np.ndarray, "P patch_dim"] | None = None
    image_grid_thw: Int64[np.ndarray, "images 3"] | None = None


class Processor:
    """Tokenizer, chat template and image processor of one checkpoint.

    Attributes:
      eos_token_ids: tokens that end an answer.
    """

    def __init__(
        self,
        tokenizer: TextCodec,
        template: ChatTemplate | None,
        images: ImageProcessor | PaddedImageProcessor | None,
        image_token: str | None,
        eos_token_ids: tuple[int, ...],
        special_tokens: Mapping[str, str],
        where: str,
    ):
        self.eos_token_ids = eos_token_ids
        self._tokenizer = tokenizer
        self._images = images
        self._image_token = image_token
        self._special_tokens = dict(special_tokens)
        self._where = where
        self._template = template

    @classmethod
    def from_directory(cls, path: str | Path) -> "Processor":
        """Reads tokenizer.json and, where present, the chat template, preprocessor and generation config.

        Raises:
          InputError: tokenizer.json is missing or damaged, or another file of these has a value that is none.
        """
        path = Path(path)
        tokenizer, special = load_tokenizer(path)
        config = read_optional(path / "config.json")
        images = _image_processor(path, config)
        image_token = None
        if (token_id := config.get("image_token_id", config.get("image_token_index"))) is not None:
            if not isinstance(token_id, int) or not 0 <= token_id < 2**31:
                raise InputError(f"{path / 'config.json'}: image_token_id is {str(token_id)[:60]}; want a token's id")
            image_token = tokenizer.vocabulary.id_to_token(token_id)
        ends = end_token_ids(path, tokenizer, special.get("eos_token"))
        template = find_template(path, read_optional(path / "tokenizer_config.json"))
        return cls(tokenizer, template, images, image_token, ends, special, str(path))

    @property
    def has_template(self) -> bool:
        """Whether the checkpoint has a chat template; base models have none."""
        return self._template is not None

    @property
    def takes_images(self) -> bool:
        """Whether prompts may hold images."""
        return self._images is not None

    def apply_chat_template(self, messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool = True) -> str:
        """The prompt of a conversation.

        Args:
          messages: role and content; content is text, or items of type "text" or "image".

        Raises:
          InputError: the checkpoint has no template, the messages are none, or the template refuses them.
        """
        _check_form(messages, "messages")
        if self._template is None:
            raise InputError(f"{self._where}: no chat template; pass plain prompts instead of messages")
        return self._template.render(messages, self._special_tokens, add_generation_prompt)

    def encode(self, text: str, images: Sequence[Any] = (), add_special_tokens: bool = True) -> Inputs:
        """Token ids, and patches of the images, whose placeholders in the text are expanded in order.

        Args:
          text: as `apply_chat_template` gives it.
          images: paths, PIL images or uint8 [H, W, 3].
          add_special_tokens: the tokenizer's own first and last tokens; a chat template writes them itself.

        Raises:
          InputError: another number of images than placeholders, or an image that is none.
        """
        if images and (self._images is None or self._image_token is None):
            raise InputError(f"{self._where}: no preprocessor_config.json; this model takes no images")
        placeholders = text.count(self._image_token) if self._image_token else 0
        if placeholders != len(images):
            raise InputError(f"the prompt has {placeholders} image placeholders, {len(images)} images were given")
        if not images or self._images is None or self._image_token is None:
            return Inputs(self._ids(text, add_special_tokens))
        encoded = [self._images(image) for image in images]
        first, *rest = text.split(self._image_token)
        for (_, grid), following in zip(encoded, rest, strict=True):
            first += self._image_token * self._images.tokens(grid) + following
        grids = np.concatenate([grid.reshape(-1, 3) for _, grid in encoded])
        return Inputs(self._ids(first, add_special_tokens), np.concatenate([patches for patches, _ in encoded]), grids)

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """Text of token ids."""
        return self._tokenizer.decode([int(i) for i in ids], skip_special_tokens)

    def is_byte(self, token: int) -> bool:
        """Whether a token is "<0x0A>" or the like: tokenizers with byte fallback decode a run of them as one."""
        return re.fullmatch("<0x[0-9A-F]{2}>", self._tokenizer.vocabulary.id_to_token(token) or "") is not None

    def _ids(self, text: str, add_special_tokens: bool) -> Int32[np.ndarray, "T"]:
        return np.array(self._tokenizer.encode(text, add_special_tokens), np.int32)


def check_messages(messages: Any, where: str) -> None:
    """Raises InputError, naming `where`, unless this is a conversation in the chat format, see `content`."""
    _check_form(messages, where)
    split_pictures(messages, where)


def _check_form(messages: Any, where: str) -> None:
    rows = list(messages) if isinstance(messages, Sequence) and not isinstance(messages, str) else []
    for row in rows:
        if not isinstance(row, Mapping) or not isinstance(row.get("role"), str) or not _is_content(row):
            raise InputError(
                f'{where}: want objects with "role" and "content", text or a list of objects; got {str(row)[:80]}'
            )
    if not rows:
        raise InputError(f"{where}: want a conversation, a list of messages with at least one")


def _is_content(message: Mapping[str, Any]) -> bool:
    content = message.get("content")
    if isinstance(content, list | tuple) and content:
        return all(isinstance(item, Mapping) for item in content)
    return isinstance(content, str) or (content is None and bool(message.get("tool_calls")))


def _image_processor(path: Path, config: Mapping[str, Any]) -> ImageProcessor | PaddedImageProcessor | None:
    """preprocessor_config.json, or its place in the processor_config.json that transformers 5 writes.

    Args:
      config: config.json; the vision tower's patch size is there alone.
    """
    file, other = path / "preprocessor_config.json", read_optional(path / "processor_config.json")
    values = read_optional(file)
    if not values:
        file = path / "processor_config.json"
        values = other.get("image_processor", {})
    if values and (config.get("model_type") == "aria" or str(values.get("image_processor_type")).startswith("Aria")):
        vision = config.get("vision_config")
        size = (vision if isinstance(vision, dict) else {}).get("patch_size", VISION_DEFAULTS["patch_size"])
        return PaddedImageProcessor.from_config(values, size, other.get("size_conversion"), str(file))
    text = config.get("text_config")
    context = (text if isinstance(text, dict) else config).get("max_position_embeddings")
    limit = context if isinstance(context, int) and context > 0 else None
    return ImageProcessor.from_config(values, str(file), limit) if values else None


def end_token_ids(path: Path, tokenizer: TextCodec | None = None, eos_token: str | None = None) -> tuple[int, ...]:
    """Tokens that end an answer: by generation_config.json or config.json, where transformers looks, else the
    tokenizer's."""
    config = read_optional(path / "config.json")
    section = config.get("text_config")
    for values in (
        read_optional(path / "generation_config.json"),
        config,
        section if isinstance(section, dict) else {},
    ):
        end = values.get("eos_token_id")
        ids = end if isinstance(end, list) else [end]
        if end is not None and ids and all(isinstance(i, int) and not isinstance(i, bool) and i >= 0 for i in ids):
            return tuple(ids)
    token = tokenizer.vocabulary.token_to_id(eos_token) if tokenizer is not None and eos_token is not None else None
    return () if token is None else (token,)
