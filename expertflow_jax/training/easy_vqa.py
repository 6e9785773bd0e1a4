"""The course of easy-VQA: its train split but for a part that is kept for validation, and its test split at the end."""

import functools
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import ml_collections
import numpy as np
from jaxtyping import Int, UInt8
from PIL import Image

from expertflow_jax.models.qwen3_vl_config import Qwen3VLMoeConfig
from expertflow_jax.tasks import easy_vqa, word_processor
from expertflow_jax.tasks.answered import Batch, encode
from expertflow_jax.tasks.digit_scenes.baselines import question_only_answers
from expertflow_jax.tasks.digit_scenes.stream import PATCHES_PER_SIDE
from expertflow_jax.tasks.provided import sources
from expertflow_jax.tasks.questions import Question
from expertflow_jax.tasks.vqa_v2 import VqaV2, prompt_text
from expertflow_jax.training.evaluation import official_accuracies

TOKENS = 32  # T; the longest prompt with its answer
_PROCESSOR = word_processor.WordProcessor(easy_vqa.WORDS, (word_processor.SHORT_ANSWER_PHRASE,))


class EasyVqa:
    """See `course.Course`. Every image is mirrored in half of the batches that it is in: no question asks for sides."""

    processor = _PROCESSOR
    patches_per_side, positions_per_side = easy_vqa.IMAGE_PIXELS // word_processor.PATCH, PATCHES_PER_SIDE
    title = "A small MoE vision-language model for easy-VQA"
    about = """which began as the committed model of digit scenes and went on with the train split of
easy-VQA (Victor Zhou, 2019; MIT): images of one coloured shape, 13 answers. It answers easy-VQA's questions and nothing
else."""
    measured = """Accuracy of greedy answers on the published test split, which neither training nor the choice of
anything saw, by VQA v2's official rule; beside it the best guess from the question alone."""

    def __init__(self, config: ml_collections.ConfigDict, model: Qwen3VLMoeConfig, data_dir: Path):
        self._config, self._model, self._data_dir = config, model, data_dir
        self._tokenizer = _PROCESSOR.build_tokenizer()

    def inputs(self) -> Mapping[str, Path]:
        return sources("easy_vqa")

    def batch(self, step: int) -> Batch:
        learnt = self._splits[0]
        rng = np.random.default_rng([self._config.seed, 7, step])
        rows = rng.choice(len(learnt), self._config.batch_size, replace=False)
        return self._encode([learnt[row] for row in rows], rng.integers(2, size=len(rows)))

    def held_out(self) -> list[tuple[str, Batch]]:
        questions, size = self._splits[1], self._config.batch_size
        starts = range(0, min(len(questions), self._config.eval_examples) - size + 1, size)
        return [("vqa_v2", self._encode(questions[at : at + size], np.zeros(size, int))) for at in starts]

    def accuracies(self, export: Path) -> dict[str, float]:
        easy_vqa.write_benchmark(self._data_dir)
        train, val = (VqaV2(self._data_dir, split) for split in ("train", "val"))
        guesses = question_only_answers(train.questions(), val.questions())
        answered = official_accuracies(export, self._data_dir, ("vqa_v2",), self._config.batch_size)
        return answered | {"vqa_v2/question_only": val.aggregate(val.examples(), guesses)["accuracy"]}

    @functools.cached_property
    def _splits(self) -> tuple[list[Question], list[Question]]:
        """The train split's questions that are learnt from, and those about `held_out_images` of its images."""
        questions = self._task.questions()
        names = sorted({question.image for question in questions})
        order = np.random.default_rng([self._config.seed, 11]).permutation(len(names))
        held_out = {names[place] for place in order[: self._config.held_out_images]}
        learnt = [question for question in questions if question.image not in held_out]
        return learnt, [question for question in questions if question.image in held_out]

    @functools.cached_property
    def _task(self) -> VqaV2:
        easy_vqa.write_benchmark(self._data_dir)
        return VqaV2(self._data_dir, "train")

    @functools.cached_property
    def _images(self) -> dict[str, UInt8[np.ndarray, "H W 3"]]:
        names = {question.image for part in self._splits for question in part}
        return {name: _pixels(data) for name, data in self._task.images(sorted(names))}

    def _encode(self, questions: Sequence[Question], mirrored: Int[np.ndarray, " B"]) -> Batch:
        images = [self._images[question.image] for question in questions]
        pixels = np.stack([image[:, ::-1] if flip else image for image, flip in zip(images, mirrored, strict=True)])
        image_tokens = (self.patches_per_side // word_processor.MERGE) ** 2
        pairs = [
            (word_processor.prompt_of(prompt_text(question.text), image_tokens), question.target["answers"][0])
            for question in questions
        ]
        return encode(self._model, pixels, pairs, TOKENS, self._tokenizer)


def _pixels(data: bytes) -> UInt8[np.ndarray, "H W 3"]:
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGB"))
