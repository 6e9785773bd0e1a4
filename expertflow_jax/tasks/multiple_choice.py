"""MMBench (2307.06281) and other official multiple-choice TSVs (see `choice_files`).

In a circular set a question counts only if it is answered right with its options in every rotation. Questions that show
the same image are one cluster, whether rows refer to the image's row or repeat it. A benchmark is a name, its files and
whether it is circular: a few lines at the end.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from expertflow_jax.errors import InputError
from expertflow_jax.tasks import choice_files
from expertflow_jax.tasks.base import Example, question_of, scores_by_group
from expertflow_jax.tasks.choice_rules import RULES, extract_choice
from expertflow_jax.tasks.official import LMMS_EVAL, OURS, VLMEVALKIT, OfficialTask, Style
from expertflow_jax.tasks.questions import Question
from expertflow_jax.tasks.spreadsheet import INSTALL, is_available, xlsx

MAX_NEW_TOKENS = 8
_SOURCE = "https://opencompass.openxlab.space/utils/"


def prompt_text(question: str, options: Mapping[str, str], hint: str | None = None) -> str:
    """VLMEvalKit's prompt for multiple choice."""
    lines = [f"Hint: {hint}\n"] if hint else []
    lines += [f"Question: {question}\n", "Options:\n", *(f"{letter}. {text}\n" for letter, text in options.items())]
    return "".join([*lines, "Please select the correct answer from the options above. \n"])


def _vlmevalkit(question: Question) -> str:
    return prompt_text(question.text, question.columns["options"], choice_files.hint_of(question))


def _options(question: Question) -> str:
    return "\n".join(f"{letter}. {text}" for letter, text in question.columns["options"].items())


def _lmms_mmbench(instruction: str) -> dict[str, Style]:
    def prompt(question: Question) -> str:
        hint = choice_files.hint_of(question)
        asked = f"{hint} {question.text}" if hint else question.text
        return f"{asked} There are several options:\n{_options(question)}\n\n{instruction}"

    return {LMMS_EVAL: Style(prompt, 1024)}


def _lmms_plain(max_new_tokens: int) -> dict[str, Style]:
    """As lmms-eval asks AI2D and ScienceQA."""

    def prompt(question: Question) -> str:
        hint = choice_files.hint_of(question)
        context = f"Context: {hint}\n" if hint else ""
        return f"{context}{question.text}\n{_options(question)}\n{_BY_LETTER}"

    return {LMMS_EVAL: Style(prompt, max_new_tokens)}


_BY_LETTER = "Answer with the option's letter from the given choices directly."
_BY_LETTER_CHINESE = "请直接使用所提供的选项字母作为答案回答。"
_VLMEVALKIT = {OURS: Style(_vlmevalkit, MAX_NEW_TOKENS, image_first=False), VLMEVALKIT: Style(_vlmevalkit, 2048)}


class MultipleChoice(OfficialTask):
    """A benchmark whose files are TSVs of multiple-choice questions; `score` is 1 for the right option, else 0.

    Attributes:
      files: file of each split. A file without a column "answer" has no public answers.
      columns: that a file must have, beside index, question and image.
    """

    files: ClassVar[Mapping[str, str]]
    folder: ClassVar[str] = ""  # below the data folder; "": the task's name
    columns: ClassVar[Collection[str]] = ("A", "B")
    where: ClassVar[str] = "VLMEval/"  # below VLMEvalKit's address
    unscored: ClassVar[Collection[str]] = ()
    styles = _VLMEVALKIT | _lmms_plain(16)

    def __init__(self, data_dir: Path, split: str, *, evaluator: str = "", **options: Any):
        """
        Args:
          evaluator: whose rule reads the option from an answer, a key of `RULES`; "": the first. The other one is the
            second evaluator.
          options: see `OfficialTask`.
        """
        if split not in self.files:
            raise InputError(f"{self.name}: no split {split!r}; known: {', '.join(self.files)}")
        if evaluator and evaluator not in RULES:
            raise InputError(f"config key evaluator: no {evaluator!r}; known: {', '.join(RULES)}")
        if split in self.unscored and not is_available():
            raise InputError(f"{self.name}: split {split!r} is for its server, whose file needs openpyxl; {INSTALL}")
        self._rules = sorted(RULES, key=lambda rule: rule != evaluator)
        self.evaluator, self.second_evaluator = (RULES[rule] for rule in self._rules)
        super().__init__(data_dir, split, **options)

    @classmethod
    def path(cls, data_dir: Path, split: str) -> Path:
        """Where a split's file lies."""
        return data_dir / (cls.folder or cls.name) / cls.files[split]

    @property
    def scored(self) -> bool:
        return self.split not in self.unscored

    def source(self) -> str:
        return _SOURCE + self.where

    def question_files(self) -> list[Path]:
        return [self.path(self.data_dir, self.split)]

    def questions(self) -> list[Question]:
        columns = [*self.columns, "answer"] if self.scored else self.columns
        return choice_files.read_questions(self.question_files()[0], self.source(), columns, self.circular)

    def images(self, names: Iterable[str]) -> Iterator[tuple[str, bytes]]:
        return choice_files.read_images(self.question_files()[0], self.source(), names)

    def score(self, example: Example, prediction: str) -> float:
        return self._score(example, prediction, self._rules[0])

    def second_score(self, example: Example, prediction: str) -> float:
        return self._score(example, prediction, self._rules[1])

    def _score(self, example: Example, prediction: str, rule: str) -> float:
        return float(extract_choice(prediction, example.target["options"], rule) == example.target["answer"])

    def aggregate(self, examples: Sequence[Example], predictions: Sequence[str]) -> dict[str, float]:
        """`accuracy` is that of questions; in a circular set of those right in every rotation, and `vanilla_accuracy`
        is that of first rows. Groups: category and l2-category."""
        if not self.circular:
            return super().aggregate(examples, predictions)
        rotations: dict[str, dict[int, float]] = {}
        first = {}
        for example, prediction in zip(examples, predictions, strict=True):
            question = question_of(example)
            rotations.setdefault(question, {})[int(example.id)] = self.score(example, prediction)
            first[question] = example
        circular = [min(scores.values()) for scores in rotations.values()]
        return {
            "accuracy": float(np.mean(circular)),
            "vanilla_accuracy": float(np.mean([scores[min(scores)] for scores in rotations.values()])),
            **scores_by_group([first[question] for question in rotations], circular),
        }

    @property
    def unwritten(self) -> str | None:
        """Why there will be no submission; None if there will."""
        if is_available():
            return None
        return f"submissions/*.xlsx are not written, openpyxl is missing; {INSTALL}"

    def submission(self, examples: Sequence[Example], predictions: Sequence[str]) -> tuple[str, bytes] | None:
        """VLMEvalKit's file of predictions, which MMBench's server takes: the TSV's columns but the image, and
        `prediction`."""
        table = [
            {name: cell for name, cell in example.columns.items() if name != "options"}
            | {"index": int(example.id), "prediction": prediction}
            for example, prediction in zip(examples, predictions, strict=True)
        ]
        return xlsx(table)


def _mmbench(language: str, version: str) -> dict[str, str]:
    names = {"val": "DEV", "dev": "DEV", "test": "TEST"}
    return {split: f"MMBench_{part}_{language}{version}.tsv" for split, part in names.items()}


class MMBench(MultipleChoice):
    """MMBench, English."""

    name = "mmbench"
    folder = "mmbench"
    where = "benchmarks/MMBench/"
    files: ClassVar = {"train": "MMBench_TRAIN_EN.tsv"} | _mmbench("EN", "")
    columns = ("A", "B", "category")
    circular = True
    unscored = ("test",)
    styles = _VLMEVALKIT | _lmms_mmbench(_BY_LETTER)


class MMBenchV11(MMBench):
    """MMBench 1.1, English."""

    name = "mmbench_v11"
    files = _mmbench("EN", "_V11")


class MMBenchChinese(MMBench):
    """MMBench, Chinese."""

    name = "mmbench_cn"
    files = _mmbench("CN", "")
    styles = _VLMEVALKIT | _lmms_mmbench(_BY_LETTER_CHINESE)


class MMBenchChineseV11(MMBenchChinese):
    """MMBench 1.1, Chinese."""

    name = "mmbench_cn_v11"
    files = _mmbench("CN", "_V11")


class CCBench(MultipleChoice):
    """Chinese culture."""

    name = "ccbench"
    files: ClassVar = {"val": "CCBench.tsv"}
    circular = True
    styles = _VLMEVALKIT | _lmms_mmbench(_BY_LETTER_CHINESE)


class MMStar(MultipleChoice):
    """Questions that cannot be answered without the image."""

    name = "mmstar"
    files: ClassVar = {"val": "MMStar.tsv"}


class SeedBench(MultipleChoice):
    """SEED-Bench, its images."""

    name = "seed_bench"
    where = "benchmarks/SEEDBench/"
    files: ClassVar = {"val": "SEEDBench_IMG.tsv"}


class AI2D(MultipleChoice):
    """Diagrams of school science."""

    name = "ai2d"
    files: ClassVar = {"test": "AI2D_TEST.tsv", "val": "AI2D_TEST.tsv"}


class RealWorldQA(MultipleChoice):
    """Everyday scenes."""

    name = "realworldqa"
    files: ClassVar = {"val": "RealWorldQA.tsv"}


class ScienceQA(MultipleChoice):
    """School science with a context."""

    name = "scienceqa"
    where = "benchmarks/ScienceQA/"
    files: ClassVar = {"val": "ScienceQA_VAL.tsv", "test": "ScienceQA_TEST.tsv"}


BENCHMARKS = (
    MMBench, MMBenchV11, MMBenchChinese, MMBenchChineseV11, CCBench, MMStar, SeedBench, AI2D, RealWorldQA, ScienceQA
)  # fmt: skip
