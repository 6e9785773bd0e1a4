"""TFDS builder of any official benchmark: one record per question that is asked, each image stored once."""

import dataclasses
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from expertflow_jax.tasks.questions import Question


class QuestionsBuilder(tfds.core.GeneratorBasedBuilder):
    """Questions in their order. A record's image is its own or, where `holder` names another record, that one's."""

    name = "questions"
    VERSION = tfds.core.Version("2.0.0")

    def __init__(
        self,
        *,
        benchmark: str,
        split: str,
        questions: Sequence[Question] = (),
        images: Callable[[Iterable[str]], Iterator[tuple[str, bytes]]] | None = None,
        **arguments: Any,
    ):
        """
        Args:
          benchmark, split: name the files.
          questions, images: what to write; not needed to read. `images` gives (name, encoded RGB image) in any order.
        """
        self.name = benchmark
        self._split, self._questions, self._images = split, questions, images
        super().__init__(**arguments)

    def _info(self) -> tfds.core.DatasetInfo:
        text = tfds.features.Text()
        return tfds.core.DatasetInfo(
            builder=self,
            disable_shuffling=True,
            features=tfds.features.FeaturesDict({"question": text, "holder": np.int64, "image": text}),
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        return {self._split: self._generate_examples()}

    def _generate_examples(self) -> Any:
        assert self._images is not None, "a builder without images only reads"
        holders: dict[str, int] = {}
        for number, question in enumerate(self._questions):
            holders.setdefault(question.image, number)
        images = self._images(holders)
        waiting: dict[str, bytes] = {}  # that came before their question
        for number, question in enumerate(self._questions):
            holder = holders[question.image]
            while holder == number and question.image not in waiting:
                name, content = next(images)
                waiting[name] = content
            image = waiting.pop(question.image) if holder == number else b""
            yield number, {"question": json.dumps(dataclasses.asdict(question)), "holder": holder, "image": image}


def question_of(record: Mapping[str, Any]) -> Question:
    """The question of a record."""
    return Question(**json.loads(record["question"]))
