"""The prompts that routing is recorded on: benchmark splits, and questions of a kind that neither benchmark asks."""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from expertflow_jax.errors import InputError
from expertflow_jax.processing import Processor
from expertflow_jax.tasks import vqa_v2
from expertflow_jax.tasks.base import Example, Task, question_of, user_turn
from expertflow_jax.tasks.digit_scenes.questions import dense_question
from expertflow_jax.tasks.digit_scenes.scenes import render, sample_scene, scan_bank
from expertflow_jax.tasks.encoding import encode_task
from expertflow_jax.tasks.registry import make_task

Prepare = Callable[[Task, list[Example]], list[Example]]


def benchmark_examples(
    data_dir: str | Path,
    split: str,
    counts: Mapping[str, int],
    *,
    skip: Mapping[str, int] | None = None,
    image_first: bool = False,
    seed: int = 0,
    prepared_dir: Path | None = None,
    prepare: Prepare | None = None,
) -> list[Example]:
    """Random examples of a split, one task after another; of a question with rotated options, one rotation.

    Args:
      data_dir: see `make_task`.
      counts: task -> how many examples.
      skip: task -> how many of the random order to pass over, so that two sets of one split stay apart.
      prepared_dir: see `make_task`.
      prepare: makes a task's examples ready before they are drawn (documents are cut into sequences).

    Raises:
      InputError: no such task or split, malformed files, or fewer examples than asked for.
    """
    chosen: list[Example] = []
    for name, count in counts.items():
        if not count:
            continue
        rng = np.random.default_rng([seed, len(chosen)])
        task = make_task(name, data_dir, split, image_first=image_first, prepared_dir=prepared_dir)
        examples = task.examples()
        if prepare is not None:
            examples = prepare(task, examples)
        order = [examples[i] for i in rng.permutation(len(examples))]
        if task.circular:
            order = list({question_of(example): example for example in order}.values())
        first = (skip or {}).get(name, 0)
        if first + count > len(order):
            raise InputError(
                f"{name}: split {split!r} has {len(order)} examples, {first + count} are asked for; lower `sequences`"
            )
        chosen += order[first : first + count]
    return chosen


def documents_cut(processor: Processor | None, text_tokens: int, vocabulary: int) -> Prepare:
    """A `prepare` for `benchmark_examples` that cuts a teacher-forced task's documents into `text_tokens` tokens."""

    def prepare(task: Task, examples: list[Example]) -> list[Example]:
        return encode_task(processor, task, examples, text_tokens, vocabulary)[0] if task.teacher_forced else examples

    return prepare


def unusual_examples(count: int, *, image_first: bool = False, seed: int = 0) -> list[Example]:
    """Questions that no benchmark split holds: to read all nine cells of a scene of held-out scans."""
    rng = np.random.default_rng([seed, 17])
    unusual = []
    for number in range(count):
        scene = sample_scene(rng)
        question = dense_question(scene, rng)
        unusual.append(
            Example(
                id=f"all-cells-{number}",
                messages=user_turn(vqa_v2.prompt_text(question.text), image_first),
                image=render([scene], scan_bank("val", augment=False), rng)[0],
                target=question.answer,
                group=question.type,
                cluster=str(number),
                max_new_tokens=vqa_v2.MAX_NEW_TOKENS,
            )
        )
    return unusual
