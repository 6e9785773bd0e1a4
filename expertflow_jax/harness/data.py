"""A task's examples made ready once for all cells: encoded prompts, and each sequence's forecast for the scheduler.

Axes: W sequences, L MoE layers, E experts.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import ml_collections
import numpy as np

from expertflow_jax.inference.loading import LoadedModel
from expertflow_jax.predictor import Predictor
from expertflow_jax.processing.batching import Prompt, for_stacks, pad_prompts
from expertflow_jax.tasks.base import Example, Task
from expertflow_jax.tasks.encoding import encode_task
from expertflow_jax.tasks.provided import data_folder
from expertflow_jax.tasks.registry import make_task

ASKING = ("image_first", "harness", "max_new_tokens", "evaluator", "sample_seed")  # config keys that tasks take


@dataclasses.dataclass(frozen=True)
class TaskData:
    """Examples of one task with their encoded prompts, in the same order."""

    task: Task
    examples: list[Example]
    prompts: list[Prompt]

    @property
    def prompt_tokens(self) -> int:
        """Tokens of all prompts, image tokens included."""
        return sum(len(p.input_ids) for p in self.prompts)


def open_task(config: ml_collections.ConfigDict, name: str, workdir: Path) -> Task:
    """The task on the official files of `config.data_dir`, or on the config's benchmark, written to WORKDIR/data.

    Raises:
      InputError: no such task or split, or files that are missing or malformed.
    """
    options = {key: config[key] for key in ASKING}
    return make_task(name, data_folder(config, workdir), config.split, prepared_dir=workdir / "tfds", **options)


def read(task: Task, limit: int) -> list[Example]:
    """`limit` examples (all with 0); of a teacher-forced task all documents, which are cut later."""
    return task.examples(None if task.teacher_forced else limit or None)


def prepare(model: LoadedModel, task: Task, questions: Sequence[Example], limit: int, text_tokens: int) -> TaskData:
    """Encodes what `read` gave; of a teacher-forced task the first `limit` sequences (all with 0)."""
    examples, prompts = encode_task(model.processor, task, questions, text_tokens, model.config.text.vocab_size)
    prompts = [for_stacks(model.config, prompt, foretold=task.teacher_forced) for prompt in prompts]
    if task.teacher_forced:  # behind an encoder, what the decoder foretells
        examples = [
            dataclasses.replace(example, target=prompt.input_ids[(prompt.encoder_tokens or 0) + 1 :].tolist())
            for example, prompt in zip(examples, prompts, strict=True)
        ]
    if limit and not task.circular:
        examples, prompts = examples[:limit], prompts[:limit]
    return TaskData(task, examples, prompts)


def signatures(model: LoadedModel, predictor: Predictor | None, data: TaskData, batch_size: int) -> np.ndarray:
    """Forecast of every sequence's prompt, P(sequence uses expert): float32 [W, L, E]; zeros without a predictor."""
    if predictor is None:
        return np.zeros((len(data.prompts), model.store.num_layers, model.store.num_experts), np.float32)
    parts = [data.prompts[start : start + batch_size] for start in range(0, len(data.prompts), batch_size)]
    return np.concatenate([forecast_prompts(model, predictor, prompts, batch_size) for prompts in parts])


def forecast_prompts(
    model: LoadedModel, predictor: Predictor, prompts: Sequence[Prompt], batch_size: int
) -> np.ndarray:
    """The same of at most `batch_size` prompts in one go: float32 [prompts, L, E]."""
    batch = pad_prompts(model.stages.config, prompts, batch_size)
    x, _ = model.embed(batch)
    use, _ = predictor.forecast(x, batch.lengths, visits=batch.visits(model.config.text))
    return use[: len(prompts)].astype(np.float32)
