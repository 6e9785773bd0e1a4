"""Training batches of digit scenes without end: the batch of a step is a pure function of (seed, step).

Fresh scenes of distorted training scans at every step, in the very prompts that the benchmark tasks use. One step in
`mmbench_every` is multiple choice. Axes: B sequences, T tokens.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from expertflow_jax.models.qwen3_vl_config import Qwen3VLMoeConfig
from expertflow_jax.processing.patches import normalise, patchify
from expertflow_jax.tasks import vqa_v2
from expertflow_jax.tasks.digit_scenes import processor_files as files
from expertflow_jax.tasks.digit_scenes.items import Item, make_items
from expertflow_jax.tasks.digit_scenes.questions import (
    Question,
    dense_question,
    hard_question,
    matching_question,
    sample_question,
)
from expertflow_jax.tasks.digit_scenes.scenes import IMAGE_PIXELS, Scene, render, sample_scene, scan_bank
from expertflow_jax.tasks.multiple_choice import prompt_text as choice_prompt

PATCHES_PER_SIDE = IMAGE_PIXELS // files.PATCH
IMAGE_TOKENS = (PATCHES_PER_SIDE // files.MERGE) ** 2
TOKENS = {"vqa_v2": 28, "mmbench": 36}  # T of each prompt form; the longest sequence fits
MATCHING_TOKENS = 30

Batch = dict[str, np.ndarray]


def prompt_of(text: str) -> str:
    """The chat-templated prompt with its image placeholder expanded, as `Processor` makes it."""
    image = files.VISION_START + files.IMAGE_PAD * IMAGE_TOKENS + files.VISION_END
    return files.IM_START + text + image + files.IM_END


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
        """input_ids [B, T], lengths [B], answer_mask [B, T], positions [3, B, T], image_index [B, T], pixel_values."""
        rng = np.random.default_rng([self.seed, 7, step])
        scenes = [sample_scene(rng) for _ in range(self.batch_size)]
        images = render(scenes, scan_bank("train", augment=True), rng)
        second = step >= self.second_stage
        every = self.second_mmbench_every if second else self.mmbench_every
        if step % every == every - 1:
            questions = [_choosable(scene, rng) for scene in scenes]
            pairs = [multiple_choice(q.text, q.choices, q.answer, rng, say_text=second) for q in questions]
            return encode(self.model, images, pairs, TOKENS["mmbench"])
        if second:
            questions = [self._late_question(scene, rng) for scene in scenes]
            return encode(self.model, images, [open_ended(q.text, q.answer) for q in questions], MATCHING_TOKENS)
        dense = rng.random(self.batch_size) < (self.dense_share if step < self.dense_steps else 0.0)
        questions = [
            dense_question(scene, rng) if all_cells else sample_question(scene, rng)
            for scene, all_cells in zip(scenes, dense, strict=True)
        ]
        return encode(self.model, images, [open_ended(q.text, q.answer) for q in questions], TOKENS["vqa_v2"])

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
    options = dict(zip(files.OPTION_LETTERS, order, strict=False))
    letter = files.OPTION_LETTERS[order.index(answer)]
    return prompt_of(choice_prompt(question, options)), f"{answer} {letter}" if say_text else letter


_TOKENIZER = files.build_tokenizer()


def encode(model: Qwen3VLMoeConfig, images: np.ndarray, pairs: Sequence[tuple[str, str]], width: int) -> Batch:
    """Model inputs of (prompt, answer) pairs, right-padded to `width` tokens.

    Args:
      images: uint8 [B, 48, 48, 3].
    """
    batch = len(pairs)
    prompts = _TOKENIZER.encode_batch([prompt for prompt, _ in pairs], add_special_tokens=False)
    answers = _TOKENIZER.encode_batch([answer + files.END for _, answer in pairs], add_special_tokens=False)
    ids = np.zeros((batch, width), np.int32)
    mask = np.zeros((batch, width), bool)
    lengths = np.zeros(batch, np.int32)
    for row, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        sequence = prompt.ids + answer.ids
        ids[row, : len(sequence)] = sequence
        mask[row, len(prompt.ids) : len(sequence)] = True
        lengths[row] = len(sequence)
    grid = np.tile(np.array([1, PATCHES_PER_SIDE, PATCHES_PER_SIDE]), (batch, 1))
    positions, _ = model.positions(ids, lengths, grid)
    is_image = ids == model.image_token_id
    index = np.where(is_image, np.cumsum(is_image).reshape(ids.shape) - 1, -1).astype(np.int32)
    pixels = normalise(images, rescale=1 / 255, mean=np.full(3, 0.5), std=np.full(3, 0.5))
    return {
        "input_ids": ids,
        "lengths": lengths,
        "answer_mask": mask,
        "positions": positions,
        "image_index": index,
        "pixel_values": patchify(pixels, patch_size=files.PATCH, temporal_patch_size=1, merge_size=files.MERGE),
    }


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
            batches.append((form, encode(model, images, [pair for _, pair in chosen], TOKENS[form])))
    return batches
