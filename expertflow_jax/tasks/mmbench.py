"""MMBench (2307.06281) from its official TSV: base64 images, up to four options, circular evaluation.

    DATA/mmbench/MMBench_DEV_EN.tsv

In a circular set the rows index, index + 1e6, index + 2e6, ... are one question with its options rotated, and it
counts only if every row is answered right. Questions that show the same image are one cluster, whether rows refer to
the image's row or repeat it. Choices are read from answers as VLMEvalKit reads them without a judge.
"""

import base64
import binascii
import csv
import dataclasses
import hashlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from expertflow_jax.errors import InputError
from expertflow_jax.tasks.base import Example, mean_by_group, question_of, user_turn
from expertflow_jax.tasks.files import rgb_bytes

SOURCE = "https://opencompass.openxlab.space/utils/benchmarks/MMBench/"
LETTERS = ("A", "B", "C", "D")
COLUMNS = ("index", "question", "A", "B", "answer", "category", "image")
ROTATION = 1_000_000
MAX_NEW_TOKENS = 8
SPLITS = {"train": "MMBench_TRAIN_EN.tsv", "val": "MMBench_DEV_EN.tsv"}  # official: dev; of test no answers are public
IMAGE_REFERENCE = 64  # characters at most of an image cell that names another row
_ABSENT = ("", "nan", "NaN")

Rows = dict[int, tuple[int, dict[str, str]]]
"""index -> (line number, row)."""


def prompt_text(question: str, options: Mapping[str, str], hint: str | None = None) -> str:
    """VLMEvalKit's prompt for multiple choice."""
    lines = [f"Hint: {hint}\n"] if hint else []
    lines += [f"Question: {question}\n", "Options:\n", *(f"{letter}. {text}\n" for letter, text in options.items())]
    return "".join([*lines, "Please select the correct answer from the options above. \n"])


def official_file(data_dir: Path, split: str) -> Path:
    """The TSV of a split; raises InputError for an unknown one."""
    if split not in SPLITS:
        raise InputError(f"mmbench: no split {split!r}; known: {', '.join(SPLITS)} (answers of test are not public)")
    return data_dir / "mmbench" / SPLITS[split]


def read_records(data_dir: Path, split: str) -> Iterator[dict[str, Any]]:
    """Rows of the TSV, the rotations of a question together, questions in order of first appearance.

    Yields:
      index, question, hint ("" if none), letters, options, answer, category, l2_category, image (encoded bytes).

    Rows are checked as a whole before the first record comes; images as they are read.

    Raises:
      InputError: the file is missing, columns are missing, a row is ragged, an index is no number or occurs twice, a
        question's first row is missing, an answer is not among the options, or an image is damaged or refers to a row
        that has none.
    """
    path = official_file(data_dir, split)
    rows = _read_rows(path)
    _check_rows(path, rows)
    groups: dict[int, list[int]] = {}
    for index in rows:
        groups.setdefault(index % ROTATION, []).append(index)
    decoded: dict[int, bytes] = {}
    for members in groups.values():
        for index in sorted(members):
            _, row = rows[index]
            options = _options(row)
            yield {
                "index": index,
                "question": row["question"],
                "hint": "" if row.get("hint", "") in _ABSENT else row["hint"],
                "letters": list(options),
                "options": list(options.values()),
                "answer": row["answer"],
                "category": row["category"],
                "l2_category": row.get("l2-category", ""),
                "image": _image(path, rows, index, decoded),
            }


def _options(row: Mapping[str, str]) -> dict[str, str]:
    """letter -> text of the options that a row has."""
    return {letter: row[letter] for letter in LETTERS if row.get(letter, "") not in _ABSENT}


def _refers(cell: str) -> bool:
    """Whether an image cell names the row that holds the image."""
    return len(cell) <= IMAGE_REFERENCE and cell.isdecimal()


def _check_rows(path: Path, rows: Rows) -> None:
    for index, (line, row) in rows.items():
        where = f"{path}: line {line}"
        if row["answer"] not in _options(row):
            named = ", ".join(_options(row)) or "none"
            raise InputError(
                f"{where}: answer {row['answer']!r} is not among the row's options ({named}); "
                f"correct the row or download the file again from {SOURCE}"
            )
        if index % ROTATION not in rows:
            raise InputError(
                f"{where}: row {index} rotates the options of row {index % ROTATION}, which is missing; "
                f"download the file again from {SOURCE}"
            )
        if _refers(row["image"]):
            holder = rows.get(int(row["image"]))
            if holder is None or _refers(holder[1]["image"]):
                raise InputError(
                    f"{where}: its image is that of row {row['image']}, which has none; "
                    f"download the file again from {SOURCE}"
                )


def _read_rows(path: Path) -> Rows:
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))  # an image is one cell
    rows: Rows = {}
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, delimiter="\t", strict=True)
            if missing := [name for name in COLUMNS if name not in (reader.fieldnames or ())]:
                raise InputError(f"{path}: no column {missing[0]!r}; get the file from {SOURCE}")
            for row in reader:
                line = reader.line_num
                if None in row or None in row.values():
                    raise InputError(
                        f"{path}: line {line} has another number of cells than the header; "
                        f"download the file again from {SOURCE}"
                    )
                number = row["index"].removesuffix(".0")  # as pandas writes a column that once had a gap
                if not number.isdecimal():
                    raise InputError(f"{path}: line {line}: index {row['index']!r} is no number; correct the row")
                index = int(number)
                if index in rows:
                    raise InputError(f"{path}: line {line}: index {index} occurs twice; remove one of the rows")
                rows[index] = (line, row)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}; get it from {SOURCE}") from error
    except (csv.Error, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not a TSV file ({error}); download it again from {SOURCE}") from error
    if not rows:
        raise InputError(f"{path}: no rows; download it again from {SOURCE}")
    return rows


def _image(path: Path, rows: Rows, index: int, decoded: dict[int, bytes]) -> bytes:
    """Encoded image of a row, or of the row that it refers to; each is decoded once."""
    line, row = rows[index]
    if _refers(row["image"]):
        return _image(path, rows, int(row["image"]), decoded)
    if index not in decoded:
        where = f"{path}: line {line}: image"
        try:
            data = base64.b64decode(row["image"], validate=True)
        except (binascii.Error, ValueError) as error:
            raise InputError(f"{where} is not base64 ({error}); download the file again from {SOURCE}") from error
        decoded[index] = rgb_bytes(data, where)
    return decoded[index]


_REFUSALS = (
    "Sorry, I can't help with images of people yet.",
    "I can't process this file.",
    "I'm sorry, but without the image provided",
    "Cannot determine the answer",
)
_LAST_WORDS = 4  # a letter counts among these; earlier, "A" is likely to be the article


def extract_choice(prediction: str, options: Mapping[str, str]) -> str | None:
    """The option that an answer names, read as VLMEvalKit's `can_infer` reads it before it would ask a judge.

    Exactly one option letter among the words, and near the end; else exactly one option's text somewhere in an answer
    that is not much longer than all options; else None.
    """
    if any(refusal in prediction for refusal in _REFUSALS):
        return None
    spaced = prediction
    for mark in ".()[],:;!*#{}":
        spaced = spaced.replace(mark, " ")
    words = spaced.split()
    named = [letter for letter in options if letter in words]
    if len(named) == 1 and words.index(named[0]) >= len(words) - _LAST_WORDS:
        return named[0]
    if not named and "Z" in words:  # "none of them", in VLMEvalKit's prompt for its judge
        return None
    if len(prediction) > 2 * sum(len(text) for text in options.values()):
        return None
    said = [letter for letter, text in options.items() if text.lower() in prediction.lower()]
    return said[0] if len(said) == 1 else None


def _image_digest(pixels: np.ndarray) -> bytes:
    return hashlib.blake2b(repr(pixels.shape).encode() + pixels.tobytes(), digest_size=16).digest()


class MMBench:
    """The task; reads what the TFDS builder prepared from the official file."""

    name = "mmbench"
    circular = True
    teacher_forced = False

    def __init__(self, data_dir: Path, split: str, *, image_first: bool = False):
        from expertflow_jax.tasks.builders.mmbench import MMBenchBuilder
        from expertflow_jax.tasks.builders.prepare import prepared

        official_file(data_dir, split)
        self.split = split
        self._image_first = image_first
        self._source = prepared(MMBenchBuilder, data_dir, split)

    def examples(self, limit: int | None = None) -> list[Example]:
        examples: list[Example] = []
        rotations: list[Example] = []
        question_of_image: dict[bytes, str] = {}  # the first question that shows it, whose name its cluster takes
        for i in range(len(self._source)):
            record = self._source[i]
            example = self._example(record)
            if rotations and example.question != rotations[0].question:
                examples += rotations
                rotations = []
            if rotations:
                cluster = rotations[0].cluster
            else:
                cluster = question_of_image.setdefault(_image_digest(np.asarray(record["image"])), example.cluster)
            rotations.append(dataclasses.replace(example, cluster=cluster))
            if limit is not None and examples and len(examples) + len(rotations) > limit:
                return examples
        return examples + rotations

    def _example(self, record: dict[str, Any]) -> Example:
        letters = [letter.decode() for letter in record["letters"]]
        options = dict(zip(letters, (option.decode() for option in record["options"]), strict=True))
        text = prompt_text(record["question"].decode(), options, record["hint"].decode() or None)
        index = int(record["index"])
        question = str(index % ROTATION)
        return Example(
            id=str(index),
            messages=user_turn(text, self._image_first),
            image=np.asarray(record["image"]),
            target={"answer": record["answer"].decode(), "options": options},
            group=record["category"].decode(),
            cluster=question,
            question=question,
            max_new_tokens=MAX_NEW_TOKENS,
        )

    def score(self, example: Example, prediction: str) -> float:
        return float(extract_choice(prediction, example.target["options"]) == example.target["answer"])

    def aggregate(self, examples: Sequence[Example], predictions: Sequence[str]) -> dict[str, float]:
        """`accuracy` is circular: of questions right in every rotation; `vanilla_accuracy` is that of first rows."""
        rotations: dict[str, dict[int, float]] = {}
        group_of = {}
        for example, prediction in zip(examples, predictions, strict=True):
            question = question_of(example)
            rotations.setdefault(question, {})[int(example.id)] = self.score(example, prediction)
            group_of[question] = example.group
        circular = [min(scores.values()) for scores in rotations.values()]
        return {
            "accuracy": float(np.mean(circular)),
            "vanilla_accuracy": float(np.mean([scores[min(scores)] for scores in rotations.values()])),
            **mean_by_group([group_of[question] for question in rotations], circular, "category"),
        }
