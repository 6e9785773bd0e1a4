"""Training batches of digit scenes without end: the batch of a step is a pure function of (seed, step).

Fresh scenes of distorted training scans at every step, in the very prompts that the benchmark tasks use. One step in
`mmbench_every` is multiple choice. Axes: B sequences, T tokens.
"""

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np

from expertflow_jax.models.qwen3_vl_config import Qwen3VLMoeConfig
from expertflow_jax.tasks import vqa_v2, word_processor
from expertflow_jax.tasks.answered import Batch, encode
from expertflow_jax.tasks.digit_scenes.items import Item, make_items
from expertflow_jax.tasks.digit_scenes.processor_files import OPTION_LETTERS, PROCESSOR
from expertflow_jax.tasks.digit_scenes.questions import (
    Question,
    dense_question,
    hard_question,
    matching_question,
    sample_question,
)
from expertflow_jax.tasks.digit_scenes.scenes import IMAGE_PIXELS, Scene, render, sample_scene, scan_bank
from expertflow_jax.tasks.multiple_choice import prompt_text as choice_prompt

PATCHES_PER_SIDE = IMAGE_PIXELS // word_processor.PATCH
IMAGE_TOKENS = (PATCHES_PER_SIDE // word_processor.MERGE) ** 2
TOKENS = {"vqa_v2": 28, "mmbench": 36}  # T of each prompt form; the longest sequence fits
MATCHING_TOKENS = 30

_encode = functools.partial(encode, tokenizer=PROCESSOR.build_tokenizer())


def prompt_of(text: str) -> str:
    """See `word_processor.prompt_of`."""
    return word_processor.prompt_of(text, IMAGE_TOKENS)


@dataclasses.dataclass(frozen=True)
class TrainStream:
    """Batches for training.

    Attributes:
      model: the model's config (special tokens, positions).
      seed: of scenes, questions and scans.
      batch_size: B.
      mmbench_every: every how many steps a batch is multiple choice.
      dense_share: share of questions that ask for all nine cells, during the first `dense_steps` steps.
      second_stage: the step from which the question mix turns to what is learnt last: the shares `matching_share` and
        `hard_share`, multiple choice every `second_mmbench_every` steps, answered by the option's text and its letter.
    """

    model: Qwen3VLMoeConfig
    seed: int
    batch_size: int
    mmbench_every: int = 4
    dense_share: float = 0.25
    dense_steps: int = 0
    second_stage: int = 1 << 30
    matching_share: float = 0.25
    hard_share: float = 0.4
    second_mmbench_every: int = 3

    def batch(self, step: int) -> Batch:
        """Model inputs and answers; see `answered.encode`."""
        rng = np.random.default_rng([self.seed, 7, step])
        scenes = [sample_scene(rng) for _ in range(self.batch_size)]
        images = render(scenes, scan_bank("train", augment=True), rng)
        second = step >= self.second_stage
        every = self.second_mmbench_every if second else self.mmbench_every
        if step % every == every - 1:
            questions = [_choosable(scene, rng) for scene in scenes]
            pairs = [multiple_choice(q.text, q.choices, q.answer, rng, say_text=second) for q in questions]
            return _encode(self.model, images, pairs, TOKENS["mmbench"])
        if second:
            questions = [self._late_question(scene, rng) for scene in scenes]
            return _encode(self.model, images, [open_ended(q.text, q.answer) for q in questions], MATCHING_TOKENS)
        dense = rng.random(self.batch_size) < (self.dense_share if step < self.dense_steps else 0.0)
        questions = [
            dense_question(scene, rng) if all_cells else sample_question(scene, rng)
            for scene, all_cells in zip(scenes, dense, strict=True)
        ]
        return _encode(self.model, images, [open_ended(q.text, q.answer) for q in questions], TOKENS["vqa_v2"])

    def _late_question(self, scene: Scene, rng: np.random.Generator) -> Question:
        draw = rng.random()
        if draw < self.matching_share:
            return matching_question(scene, rng)
        if draw < self.matching_share + self.hard_share:
            return hard_question(scene, rng)
        return sample_question(scene, rng)


def _choosable(scene: Scene, rng: np.random.Generator) -> Question:
    while not (question := sample_question(scene, rng, reading_share=0.0)).choices:
        pass
    return question


def open_ended(question: str, answer: str) -> tuple[str, str]:
    """(prompt, answer) as in VQA v2."""
    return prompt_of(vqa_v2.prompt_text(question)), answer


def multiple_choice(
    question: str, choices: Sequence[str], answer: str, rng: np.random.Generator, say_text: bool = True
) -> tuple[str, str]:
    """(prompt, answer) as in MMBench, the options in random order.

    The answer is the option's letter, with `say_text` after its text: what to answer is then settled before it is
    looked up among the options.
    """
    order = [choices[i] for i in rng.permutation(len(choices))]
    options = dict(zip(OPTION_LETTERS, order, strict=False))
    letter = OPTION_LETTERS[order.index(answer)]
    return prompt_of(choice_prompt(question, options)), f"{answer} {letter}" if say_text else letter


def held_out_batches(model: Qwen3VLMoeConfig, count: int, batch_size: int, seed: int) -> list[tuple[str, Batch]]:
    """(prompt form, batch) pairs of `count` held-out questions in each form, scans unseen in training."""
    rng = np.random.default_rng([seed, 11])
    items = make_items("val", count, seed)
    forms = {
        "vqa_v2": [(item, open_ended(item.question, item.answer)) for item in items],
        "mmbench": [
            (item, multiple_choice(item.question, item.choices, item.answer, rng)) for item in items if item.choices
        ],
    }
    batches = []
    for form, examples in forms.items():
        for start in range(0, len(examples) - batch_size + 1, batch_size):
            chosen: list[tuple[Item, tuple[str, str]]] = examples[start : start + batch_size]
            images = np.stack([item.image for item, _ in chosen])
            batches.append((form, _encode(model, images, [pair for _, pair in chosen], TOKENS[form])))
    return batches
