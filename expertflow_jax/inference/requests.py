"""What a caller of `OffloadedModel` gives, in any of its forms, as prompts. Axes: B sequences, T tokens."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from expertflow_jax.errors import InputError
from expertflow_jax.inference.arrays import as_array, token_rows, valid_rows, with_pictures
from expertflow_jax.inference.chat import encode_prompts
from expertflow_jax.inference.loading import LoadedModel
from expertflow_jax.models.causal_lm import ModelConfig
from expertflow_jax.processing.batching import Prompt, behind_encoder


@dataclasses.dataclass(frozen=True)
class ProcessorArrays:
    """What Hugging Face's processors return, by their names; see `OffloadedModel.logits`.

    `token_type_ids` and `mm_token_type_ids` follow from `input_ids`; they are not read.
    """

    input_ids: Any = None
    attention_mask: Any = None
    pixel_values: Any = None
    image_grid_thw: Any = None
    pixel_mask: Any = None
    token_type_ids: Any = None
    mm_token_type_ids: Any = None

    @property
    def given(self) -> list[str]:
        """Names of those that are not None."""
        return [field.name for field in dataclasses.fields(self) if getattr(self, field.name) is not None]


def read_prompts(
    model: LoadedModel, prompts: Any, images: Any, arrays: ProcessorArrays, decoder_input_ids: Any
) -> list[Prompt]:
    """The prompts of `OffloadedModel.generate`: `prompts` with `images`, or `arrays`, padded left or right.

    Raises:
      InputError: both or neither are given, or they are none.
    """
    if isinstance(prompts, Mapping) and "input_ids" in prompts:
        prompts, arrays = None, _from_mapping(prompts, arrays)
    if arrays.given and prompts is not None:
        if arrays.input_ids is not None or _holds_text(prompts):
            raise InputError(f"generate: {arrays.given[0]} was given beside prompts; leave one of them out")
        prompts, arrays = None, dataclasses.replace(arrays, input_ids=prompts)
    if prompts is not None:
        vocabulary = model.config.text.vocab_size
        encoded = encode_prompts(model.processor, str(model.path), prompts, images, vocabulary)
        return _behind_encoder(model.config, encoded, decoder_input_ids)
    if arrays.input_ids is None:
        raise InputError("generate: no prompts; give texts, messages or input_ids")
    if images is not None:
        raise InputError("generate: images go with texts; give input_ids together with pixel_values")
    return _from_arrays(model.config, arrays, decoder_input_ids)


def read_right_padded(config: ModelConfig, arrays: ProcessorArrays, decoder_input_ids: Any) -> list[Prompt]:
    """The prompts of `OffloadedModel.logits`, one for each row of arrays that are padded on the right.

    Raises:
      InputError: other shapes or another padding, or what `valid_rows` and `with_pictures` refuse.
    """
    ids = as_array("input_ids", arrays.input_ids)
    if ids.ndim != 2 or not ids.size:
        raise InputError(f"input_ids: want integers [B, T], got {ids.dtype} {ids.shape}")
    if arrays.attention_mask is not None:
        mask = as_array("attention_mask", arrays.attention_mask)
        if mask.shape != ids.shape or not mask[:, 0].all():
            raise InputError("attention_mask: want the shape of input_ids, and ones before zeros (pad on the right)")
    return _from_arrays(config, arrays, decoder_input_ids)


def read_stops(model: LoadedModel, stop: Any) -> list[str]:
    """The texts that end an answer, of one, several or None.

    Raises:
      InputError: one is empty or no text, or the checkpoint has no tokenizer.
    """
    texts = [stop] if isinstance(stop, str) or not hasattr(stop or (), "__iter__") else list(stop or ())
    if texts and (model.processor is None or not all(isinstance(text, str) and text for text in texts)):
        raise InputError("stop: want texts that are not empty, and a checkpoint with tokenizer.json")
    return texts


def _from_mapping(values: Mapping[str, Any], arrays: ProcessorArrays) -> ProcessorArrays:
    """What a processor returned as one object, and what was given beside it."""
    names = {field.name for field in dataclasses.fields(arrays)}
    if unknown := sorted(set(values) - names):
        raise InputError(f"generate: the model reads no {unknown[0]!r}; leave it out")
    return dataclasses.replace(arrays, **values)


def _holds_text(prompts: Any) -> bool:
    first = prompts[0] if isinstance(prompts, list | tuple) and prompts else prompts
    return isinstance(first, str | Mapping)


def _from_arrays(config: ModelConfig, arrays: ProcessorArrays, decoder_input_ids: Any) -> list[Prompt]:
    rows = valid_rows(arrays.input_ids, arrays.attention_mask, config.text.vocab_size)
    prompts = with_pictures(config, rows, arrays.pixel_values, arrays.image_grid_thw, arrays.pixel_mask)
    return _behind_encoder(config, prompts, decoder_input_ids)


def _behind_encoder(config: ModelConfig, prompts: list[Prompt], decoder_input_ids: Any) -> list[Prompt]:
    if decoder_input_ids is not None:
        decoder_input_ids = as_array("decoder_input_ids", decoder_input_ids)
        if decoder_input_ids.ndim == 2 and decoder_input_ids.size:
            token_rows("decoder_input_ids", decoder_input_ids, config.text.vocab_size)
    return behind_encoder(config, prompts, decoder_input_ids)
