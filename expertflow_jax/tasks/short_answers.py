"""Benchmarks of short answers on official JSON files and folders of images: TextVQA, GQA, POPE."""

import json
import string
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from expertflow_jax.errors import InputError
from expertflow_jax.tasks import vqa_metric
from expertflow_jax.tasks.base import Example
from expertflow_jax.tasks.files import field, read_json, read_utf8
from expertflow_jax.tasks.official import OfficialTask, json_file, short_answers
from expertflow_jax.tasks.questions import Question


class _ShortAnswers(OfficialTask):
    """Attributes: parts: what its files call each split; unscored: splits without public answers."""

    parts: ClassVar[Mapping[str, str]]
    unscored: ClassVar[Sequence[str]] = ()
    address: ClassVar[str]

    def __init__(self, data_dir: Path, split: str, **options: Any):
        if split not in self.parts:
            raise InputError(f"{self.name}: no split {split!r}; known: {', '.join(self.parts)}")
        super().__init__(data_dir, split, **options)

    @property
    def scored(self) -> bool:
        return self.split not in self.unscored

    @property
    def folder(self) -> Path:
        """Where the benchmark's files lie."""
        return self.data_dir / self.name

    def source(self) -> str:
        return self.address


class TextVQA(_ShortAnswers):
    """Reading text in images (1904.08920); ten answers, always processed before they are compared.

    DATA/textvqa/TextVQA_0.5.1_val.json, train_images/*.jpg (also of val), test_images/*.jpg
    """

    name = "textvqa"
    evaluator = f"MMF's rule as in {vqa_metric.LMMS_EVAL}"
    address = "https://textvqa.org/dataset/"
    parts: ClassVar = {"train": "train", "val": "val", "test": "test"}
    unscored = ("test",)
    styles = short_answers(10, 1024)

    def question_files(self) -> list[Path]:
        return [self.folder / f"TextVQA_0.5.1_{self.parts[self.split]}.json"]

    def questions(self) -> list[Question]:
        path = self.question_files()[0]
        questions = []
        for number, row in enumerate(field(path, "the file", read_json(path, self.address), "data", list)):
            where = f"question {number}"
            answers = field(path, where, row, "answers", list) if self.scored else None
            image = field(path, where, row, "image_id", str)
            questions.append(
                Question(
                    id=str(field(path, where, row, "question_id", int)),
                    text=field(path, where, row, "question", str),
                    image=f"{image}.jpg",
                    target=None if answers is None else {"answers": [str(answer) for answer in answers]},
                    groups={},
                    cluster=image,
                )
            )
        return questions

    def image_folder(self) -> Path:
        return self.folder / ("test_images" if self.split == "test" else "train_images")

    def score(self, example: Example, prediction: str) -> float:
        return vqa_metric.textvqa_accuracy(prediction, example.target["answers"])

    def submission(self, examples: Sequence[Example], predictions: Sequence[str]) -> tuple[str, bytes]:
        rows = zip(examples, predictions, strict=True)
        return json_file([{"question_id": int(example.id), "answer": answer} for example, answer in rows])


class GQA(_ShortAnswers):
    """Compositional questions about scenes (1902.09506), on the balanced sets; the answer must be the very word.

    DATA/gqa/val_balanced_questions.json, testdev_balanced_questions.json, images/*.jpg
    """

    name = "gqa"
    evaluator = "GQA's eval.py (2019): equal texts"
    second_evaluator = f"{vqa_metric.LMMS_EVAL}: case and punctuation aside"
    address = "https://cs.stanford.edu/people/dorarad/gqa/download.html"
    parts: ClassVar = {name: f"{name}_balanced" for name in ("train", "val", "testdev", "test")}
    unscored = ("test",)
    styles = short_answers(10, 16)

    def question_files(self) -> list[Path]:
        return [self.folder / f"{self.parts[self.split]}_questions.json"]

    def questions(self) -> list[Question]:
        path = self.question_files()[0]
        questions = []
        for name, row in read_json(path, self.address).items():
            where = f"question {name}"
            image = field(path, where, row, "imageId", str)
            types = field(path, where, row, "types", dict) if self.scored else {}
            questions.append(
                Question(
                    id=name,
                    text=field(path, where, row, "question", str),
                    image=f"{image}.jpg",
                    target={"answer": field(path, where, row, "answer", str)} if self.scored else None,
                    groups={key: str(types[key]) for key in ("structural", "semantic") if types.get(key)},
                    cluster=image,
                )
            )
        return questions

    def image_folder(self) -> Path:
        return self.folder / "images"

    def score(self, example: Example, prediction: str) -> float:
        return float(prediction == example.target["answer"])

    def second_score(self, example: Example, prediction: str) -> float:
        return float(_plain(prediction) == _plain(example.target["answer"]))

    def submission(self, examples: Sequence[Example], predictions: Sequence[str]) -> tuple[str, bytes]:
        rows = zip(examples, predictions, strict=True)
        return json_file([{"questionId": example.id, "prediction": answer} for example, answer in rows])


def _plain(text: str) -> str:
    return text.lower().translate(str.maketrans("", "", string.punctuation))


class Pope(_ShortAnswers):
    """Is such an object in the image (2305.10355)? Three subsets; "yes" unless the first sentence denies.

    DATA/pope/coco_pope_{random,popular,adversarial}.json, val2014/COCO_val2014_*.jpg (or those of DATA/vqa_v2)
    """

    name = "pope"
    evaluator = "POPE's evaluate.py (2023)"
    second_evaluator = f"{vqa_metric.LMMS_EVAL}: the word alone"
    address = "https://github.com/AoiDragon/POPE (output/coco), images from https://cocodataset.org/#download"
    subsets = ("random", "popular", "adversarial")
    parts: ClassVar = {"val": "all"} | {name: name for name in subsets}
    styles = short_answers(10, 128)

    def question_files(self) -> list[Path]:
        subsets = self.subsets if self.split == "val" else (self.split,)
        return [self.folder / f"coco_pope_{name}.json" for name in subsets]

    def questions(self) -> list[Question]:
        questions = []
        for path in self.question_files():
            subset = path.stem.rpartition("_")[2]
            for number, line in enumerate(read_utf8(path, self.address).splitlines(), 1):
                if not line.strip():
                    continue
                where = f"line {number}"
                try:
                    row = json.loads(line)
                except ValueError as error:
                    raise InputError(f"{path}: {where}: not JSON ({error}); get it from {self.address}") from error
                label = field(path, where, row, "label", str).strip().lower()
                if label not in ("yes", "no"):
                    raise InputError(f"{path}: {where}: 'label' is {label!r}, want yes or no")
                image = field(path, where, row, "image", str)
                questions.append(
                    Question(
                        id=f"{subset}-{field(path, where, row, 'question_id', int)}",
                        text=field(path, where, row, "text", str),
                        image=image,
                        target={"answer": label},
                        groups={"subset": subset},
                        cluster=image,
                    )
                )
        return questions

    def image_folder(self) -> Path:
        folders = [self.folder / "val2014", self.data_dir / "vqa_v2" / "val2014"]
        return next((folder for folder in folders if folder.is_dir()), folders[0])

    def score(self, example: Example, prediction: str) -> float:
        return float(says_yes(prediction) == (example.target["answer"] == "yes"))

    def second_score(self, example: Example, prediction: str) -> float:
        return float(prediction.lower().strip() == example.target["answer"])

    def aggregate(self, examples: Sequence[Example], predictions: Sequence[str]) -> dict[str, float]:
        """Besides accuracy: precision, recall and F1 of "yes", and the share of answers that are "yes"; for each
        subset too ("f1/random")."""
        rows = list(zip(examples, predictions, strict=True))
        scores = super().aggregate(examples, predictions) | _yes_scores(rows)
        for subset in sorted({example.groups["subset"] for example in examples}):
            some = [row for row in rows if row[0].groups["subset"] == subset]
            scores |= {f"{name}/{subset}": value for name, value in _yes_scores(some).items()}
        return scores


def says_yes(prediction: str) -> bool:
    """As POPE reads an answer: "yes" unless its first sentence has "no", "No" or "not" among its words."""
    words = prediction.partition(".")[0].replace(",", "").split(" ")
    return not {"No", "not", "no"} & set(words)


def _yes_scores(rows: Sequence[tuple[Example, str]]) -> dict[str, float]:
    said = np.array([says_yes(prediction) for _, prediction in rows])
    true = np.array([example.target["answer"] == "yes" for example, _ in rows])
    hits = int((said & true).sum())
    precision = hits / int(said.sum()) if said.any() else 0.0
    recall = hits / int(true.sum()) if true.any() else 0.0
    f1 = 2 * precision * recall / (precision + recall) if hits else 0.0
    return {"precision": precision, "recall": recall, "f1": f1, "yes_ratio": float(said.mean())}
