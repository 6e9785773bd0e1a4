"""What tasks on official files share: which questions are asked and how, their images, scores by group.

A task's style says how a harness asks: prompt, place of the image and length limit. A benchmark of its own is a
subclass that reads questions and images and scores an answer.
"""

import abc
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from expertflow_jax.errors import InputError
from expertflow_jax.files import read_whole
from expertflow_jax.tasks.base import Example, scores_by_group, user_turn
from expertflow_jax.tasks.files import rgb_bytes
from expertflow_jax.tasks.questions import Question, select

SHORT_ANSWER = "\nAnswer the question using a single word or phrase."
OURS, LMMS_EVAL, VLMEVALKIT = "", "lmms-eval", "vlmevalkit"


@dataclasses.dataclass(frozen=True)
class Style:
    """How a harness asks the questions of a task.

    Attributes:
      prompt: a question's text as the model reads it.
      max_new_tokens: length limit of an answer.
      image_first: see `base.user_turn`.
    """

    prompt: Callable[[Question], str]
    max_new_tokens: int
    image_first: bool = True


def short_answers(ours: int, lmms_eval: int) -> dict[str, Style]:
    """Styles of a task with short answers, by harness; both give the same prompt. Args: length limits."""

    def prompt(question: Question) -> str:
        return question.text + SHORT_ANSWER

    return {OURS: Style(prompt, ours, image_first=False), LMMS_EVAL: Style(prompt, lmms_eval),
            VLMEVALKIT: Style(prompt, 2048)}  # fmt: skip


class OfficialTask(abc.ABC):
    """A split of a benchmark, read from its official files as far as it is asked for.

    Attributes:
      evaluator: whose rule `score` is, with its version; `second_evaluator` that of `second_score`, None if none.
      styles: by harness; "" is this project's.
      scored: whether the split's answers are public.
    """

    name: str
    second_evaluator: str | None = None
    circular = False
    teacher_forced = False
    styles: ClassVar[Mapping[str, Style]]
    evaluator: str

    def __init__(
        self,
        data_dir: Path,
        split: str,
        *,
        image_first: bool = False,
        harness: str = OURS,
        max_new_tokens: int = 0,
        sample_seed: int = -1,
        prepared_dir: Path | None = None,
    ):
        """
        Args:
          image_first: the image before the text, also where the harness's style has it behind.
          harness: whose style questions are asked in.
          max_new_tokens: length limit of an answer; 0: the style's.
          sample_seed: of a random sample of whole images; -1: the first questions of the file.
          prepared_dir: for prepared data where `data_dir` cannot be written.

        Raises:
          InputError: no such split or harness, or official files are missing.
        """
        if harness not in self.styles:
            known = ", ".join(repr(name) for name in self.styles)
            raise InputError(f"config key harness: task {self.name!r} has no {harness!r}; known: {known}")
        if max_new_tokens < 0:
            raise InputError(f"config key max_new_tokens: {max_new_tokens} is below 0; 0 is the task's own limit")
        style = self.styles[harness]
        self.split = split
        self._data_dir = data_dir
        self._prepared_dir = prepared_dir
        self._seed = None if sample_seed < 0 else sample_seed
        self._style = dataclasses.replace(
            style,
            image_first=image_first or style.image_first,
            max_new_tokens=max_new_tokens or style.max_new_tokens,
        )
        self._image_files: list[Path] = []
        for path in self.question_files():
            if not path.exists():
                raise InputError(f"{path}: no such file; get it from {self.source()}")

    # What a benchmark says of itself.

    @abc.abstractmethod
    def source(self) -> str:
        """Where its files come from, for messages."""

    @abc.abstractmethod
    def question_files(self) -> list[Path]:
        """The files that questions are read from."""

    @abc.abstractmethod
    def questions(self) -> list[Question]:
        """All questions, checked; raises InputError for malformed files."""

    def image_folder(self) -> Path | None:
        """Where image files lie; None if images lie in the question files."""
        return None

    def image_file(self, name: str) -> Path | None:
        """The file of an image; None if images lie in the question files."""
        folder = self.image_folder()
        return None if folder is None else folder / name

    def images(self, names: Iterable[str]) -> Iterator[tuple[str, bytes]]:
        """(name, encoded RGB image) of each name; raises InputError for one that is missing or damaged."""
        for name in names:
            path = self.image_file(name)
            assert path is not None, "a task without image files reads images from its question files"
            data = read_whole(path, f"get the images from {self.source()}")
            yield name, rgb_bytes(data, str(path))

    @abc.abstractmethod
    def score(self, example: Example, prediction: str) -> float:
        """The evaluator's score of one answer, in [0, 1]."""

    def second_score(self, example: Example, prediction: str) -> float:
        """The second evaluator's score of one answer, in [0, 1]."""
        raise NotImplementedError(f"task {self.name} has no second evaluator")

    # What a study asks of it.

    @property
    def scored(self) -> bool:
        """Whether the split's answers are public."""
        return True

    def inputs(self) -> list[Path]:
        """The question files, and the images that `examples` has read."""
        return [*self.question_files(), *self._image_files]

    def examples(self, limit: int | None = None) -> list[Example]:
        """At most `limit` questions with their images, in the order of the file; see `questions.select`."""
        from expertflow_jax.tasks.builders.prepare import prepared

        asked, self._image_files = prepared(self, limit, self._seed, self._prepared_dir)
        return [self._example(question, image) for question, image in asked]

    def select(self, limit: int | None, seed: int | None) -> list[Question]:
        """The questions that are asked; see `questions.select`."""
        return select(self.questions(), limit, seed)

    def _example(self, question: Question, image: np.ndarray) -> Example:
        return Example(
            id=question.id,
            messages=user_turn(self._style.prompt(question), self._style.image_first),
            image=image,
            target=question.target,
            group=next(iter(question.groups.values()), ""),
            cluster=question.cluster,
            max_new_tokens=self._style.max_new_tokens,
            question=question.rotates,
            groups=question.groups,
            columns=question.columns,
        )

    def aggregate(self, examples: Sequence[Example], predictions: Sequence[str]) -> dict[str, float]:
        """`accuracy`, and that of each group: "answer_type/number"."""
        scores = [self.score(e, p) for e, p in zip(examples, predictions, strict=True)]
        return {"accuracy": float(np.mean(scores)), **scores_by_group(examples, scores)}

    def submission(self, examples: Sequence[Example], predictions: Sequence[str]) -> tuple[str, bytes] | None:
        """(ending, content) of the file that the benchmark's server takes; None where there is none."""
        return None

    @property
    def data_dir(self) -> Path:
        """Where the official files lie."""
        return self._data_dir


def json_file(value: Any) -> tuple[str, bytes]:
    """A submission in JSON."""
    import json

    return "json", json.dumps(value, ensure_ascii=False).encode()
