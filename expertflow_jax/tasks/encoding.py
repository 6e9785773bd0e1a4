"""A task's examples as the model reads them: through its own tokenizer, chat template and image preprocessing."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from expertflow_jax.errors import InputError
from expertflow_jax.processing import Processor, split_pictures
from expertflow_jax.processing.batching import Prompt
from expertflow_jax.tasks.base import Example, Task
from expertflow_jax.tasks.text import windows


def encode_example(processor: Processor | None, example: Example) -> Prompt:
    """An example as the model reads it: given tokens as they are, text through the tokenizer, messages through chat
    template, tokenizer and image preprocessing of the model's own processor. A model without a template continues a
    prompt as it stands.

    Raises:
      InputError: the model has no tokenizer, or takes no images, and the example needs that.
    """
    if example.input_ids is not None:
        return Prompt(np.array(example.input_ids, np.int32))
    if processor is None:
        raise InputError("config key model: the checkpoint has no tokenizer.json, and the task's examples are text")
    if example.text is not None:
        return Prompt(processor.encode(example.text).input_ids)
    turns, sources = split_pictures(example.messages, f"example {example.id}")
    images = [example.image if source is None else source for source in sources]
    if images and not processor.takes_images:
        raise InputError("config key model: it takes no images (no preprocessor_config.json), and the task has some")
    if not processor.has_template and (turn := _plain_turn(turns)) is not None:
        return Prompt(processor.encode(turn).input_ids)
    text = processor.apply_chat_template(turns, add_generation_prompt=True)
    inputs = processor.encode(text, images, add_special_tokens=False)  # the template writes them
    return Prompt(inputs.input_ids, inputs.pixel_values, inputs.image_grid_thw)


def _plain_turn(messages: Sequence[Mapping[str, Any]]) -> str | None:
    """The text of a conversation that is one turn of text and nothing else."""
    content = messages[0]["content"]
    return content if len(messages) == 1 and isinstance(content, str) else None


def encode_task(
    processor: Processor | None, task: Task, examples: Sequence[Example], text_tokens: int, vocabulary: int
) -> tuple[list[Example], list[Prompt]]:
    """Examples with their prompts; documents of a teacher-forced task cut into windows of `text_tokens`.

    Raises:
      InputError: no tokenizer for text, or a token outside the vocabulary.
    """
    prompts = [encode_example(processor, example) for example in examples]
    if task.teacher_forced:
        examples = windows(examples, [prompt.input_ids for prompt in prompts], text_tokens)
        prompts = [encode_example(processor, example) for example in examples]
    for example, prompt in zip(examples, prompts, strict=True):
        if (highest := int(prompt.input_ids.max())) >= vocabulary:
            raise InputError(
                f"task {task.name!r}: example {example.id} has token {highest}, outside the vocabulary of {vocabulary}"
            )
    return list(examples), prompts
