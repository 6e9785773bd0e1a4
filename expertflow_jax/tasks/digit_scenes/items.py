"""A split of the benchmark: images with their questions, a pure function of (split, count, seed)."""

import dataclasses

import numpy as np

from expertflow_jax.tasks.digit_scenes.questions import Question, sample_question
from expertflow_jax.tasks.digit_scenes.scenes import render, sample_scene, scan_bank

QUESTIONS_PER_SCENE = 4
_SPLIT_KEYS = {"train": 0, "val": 1}


@dataclasses.dataclass(frozen=True)
class Item:
    """One question about one image; items of one scene share `scene_id` and `image`.

    Attributes:
      scene_id: number of the scene within its split.
      image: uint8 [48, 48, 3].
      question, answer, question_type, answer_type, choices, category: see `questions.Question`.
    """

    scene_id: int
    image: np.ndarray
    question: str
    answer: str
    question_type: str
    answer_type: str
    choices: tuple[str, ...]
    category: str


def make_items(split: str, count: int, seed: int) -> list[Item]:
    """`count` questions over scenes of the split's scans; different questions of one scene, in a shuffled order.

    Args:
      split: "train" (training scans, distorted copies) or "val" (held-out scans as they are).
      count: how many questions.
      seed: of scenes, scans and questions.
    """
    rng = np.random.default_rng([seed, _SPLIT_KEYS[split]])
    bank = scan_bank(split, augment=split == "train")
    items: list[Item] = []
    scene_id = 0
    while len(items) < count:
        scene = sample_scene(rng)
        image = render([scene], bank, rng)[0]
        asked: dict[str, Question] = {}
        while len(asked) < QUESTIONS_PER_SCENE:
            question = sample_question(scene, rng)
            asked.setdefault(question.text, question)
        items += [
            Item(scene_id, image, q.text, q.answer, q.type, q.answer_type, q.choices, q.category)
            for q in asked.values()
        ]
        scene_id += 1
    del items[count:]
    return [items[i] for i in rng.permutation(count)]
