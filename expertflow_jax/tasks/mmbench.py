"""MMBench (2307.06281) from its official TSV: base64 images, up to four options, circular evaluation.

    DATA/mmbench/MMBench_DEV_EN.tsv

In a circular set the rows index, index + 1e6, index + 2e6, ... are one question with its options rotated, and it
counts only if every row is answered right. Choices are read from answers as VLMEvalKit reads them without a judge.
"""

import base64
import binascii
import csv
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from expertflow_jax.errors import InputError
from expertflow_jax.tasks.base import Example, mean_by_group, user_turn
from expertflow_jax.tasks.files import rgb_bytes

SOURCE = "https://github.com/open-compass/MMBench"
LETTERS = ("A", "B", "C", "D")
COLUMNS = ("index", "question", "A", "B", "answer", "category", "image")
ROTATION = 1_000_000
MAX_NEW_TOKENS = 8
SPLITS = {"train": "MMBench_TRAIN_EN.tsv", "val": "MMBench_DEV_EN.tsv", "test": "MMBench_TEST_EN.tsv"}
_ABSENT = ("", "nan", "NaN")


def prompt_text(question: str, options: Mapping[str, str], hint: str | None = None) -> str:
    """VLMEvalKit's prompt for multiple choice."""
    lines = [f"Hint: {hint}\n"] if hint else []
    lines += [f"Question: {question}\n", "Options:\n", *(f"{letter}. {text}\n" for letter, text in options.items())]
    return "".join([*lines, "Please select the correct answer from the options above. \n"])


def official_file(data_dir: Path, split: str) -> Path:
    """The TSV of a split; raises InputError for an unknown one."""
    if split not in SPLITS:
        raise InputError(f"mmbench: no split {split!r}; known: {', '.join(SPLITS)}")
    return data_dir / "mmbench" / SPLITS[split]


def read_records(data_dir: Path, split: str) -> Iterator[dict[str, Any]]:
    """Rows of the TSV, the rotations of a question together, questions in order of first appearance.

    Yields:
      index, question, hint ("" if none), letters, options, answer, category, l2_category, image (encoded bytes).

    Raises:
      InputError: the file is missing, columns are missing, a row is ragged, an index is no number or occurs twice, an
        answer is not among the options, or an image is damaged or refers to a row that is not there.
    """
    path = official_file(data_dir, split)
    rows = _read_rows(path)
    groups: dict[int, list[int]] = {}
    for index in rows:
        groups.setdefault(index % ROTATION, []).append(index)
    decoded: dict[int, bytes] = {}
    for members in groups.values():
        for index in members:
            line, row = rows[index]
            where = f"{path}: line {line}"
            options = {letter: row[letter] for letter in LETTERS if row.get(letter, "") not in _ABSENT}
            if row["answer"] not in options:
                raise InputError(f"{where}: answer {row['answer']!r} is not among its options {', '.join(options)}")
            hint = row.get("hint", "")
            yield {
                "index": index,
                "question": row["question"],
                "hint": "" if hint in _ABSENT else hint,
                "letters": list(options),
                "options": list(options.values()),
                "answer": row["answer"],
                "category": row["category"],
                "l2_category": row.get("l2-category", ""),
                "image": _image(path, rows, index, decoded),
            }


def _read_rows(path: Path) -> dict[int, tuple[int, dict[str, str]]]:
    """index -> (line number, row)."""
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))  # an image is one cell
    rows: dict[int, tuple[int, dict[str, str]]] = {}
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file, delimiter="\t", strict=True)
            if missing := [name for name in COLUMNS if name not in (reader.fieldnames or ())]:
                raise InputError(f"{path}: no column {missing[0]!r}; get the file from {SOURCE}")
            for row in reader:
                line = reader.line_num
                if None in row or None in row.values():
                    raise InputError(f"{path}: line {line} has another number of cells than the header")
                try:
                    index = int(float(row["index"]))
                except ValueError as error:
                    raise InputError(f"{path}: line {line}: index {row['index']!r} is no number") from error
                if index in rows:
                    raise InputError(f"{path}: line {line}: index {index} occurs twice")
                rows[index] = (line, row)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}; get it from {SOURCE}") from error
    except (csv.Error, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not a TSV file ({error}); download it again from {SOURCE}") from error
    if not rows:
        raise InputError(f"{path}: no rows; download it again from {SOURCE}")
    return rows


def _image(path: Path, rows: Mapping[int, tuple[int, dict[str, str]]], index: int, decoded: dict[int, bytes]) -> bytes:
    """Encoded image of a row; a short cell is the index of the row that holds it."""
    line, row = rows[index]
    cell = row["image"]
    if len(cell) <= 64 and cell.isdigit():
        other = int(cell)
        if other not in rows or (len(rows[other][1]["image"]) <= 64 and rows[other][1]["image"].isdigit()):
            raise InputError(f"{path}: line {line}: its image is that of row {other}, which has none")
        return _image(path, rows, other, decoded)
    if index not in decoded:
        try:
            data = base64.b64decode(cell, validate=True)
        except (binascii.Error, ValueError) as error:
            raise InputError(f"{path}: line {line}: image is not base64 ({error}); download the file again") from error
        decoded[index] = rgb_bytes(data, f"{path}: line {line}")
    return decoded[index]


def extract_choice(prediction: str, options: Mapping[str, str]) -> str | None:
    """The option that an answer names: exactly one letter among its words, else exactly one option's text in it."""
    spaced = prediction
    for mark in ".()[],:;!*#{}":
        spaced = spaced.replace(mark, " ")
    words = spaced.split()
    named = [letter for letter in options if letter in words]
    # With several words, "A" may be the article.
    if len(named) == 1 and not (named == ["A"] and len(words) > 3):
        return named[0]
    said = [letter for letter, text in options.items() if text.lower() in prediction.lower()]
    return said[0] if len(said) == 1 else None


class MMBench:
    """The task; reads what the TFDS builder prepared from the official file."""

    name = "mmbench"
    circular = True

    def __init__(self, data_dir: Path, split: str, *, image_first: bool = False):
        from expertflow_jax.tasks.builders.mmbench import MMBenchBuilder
        from expertflow_jax.tasks.builders.prepare import prepared

        official_file(data_dir, split)
        self.split = split
        self._image_first = image_first
        self._source = prepared(MMBenchBuilder, data_dir, split)

    def examples(self, limit: int | None = None) -> list[Example]:
        found: list[Example] = []
        group: list[Example] = []
        for i in range(len(self._source)):
            example = self._example(self._source[i])
            if group and example.cluster != group[0].cluster:
                found += group
                group = []
            group.append(example)
            if limit is not None and found and len(found) + len(group) > limit:
                return found
        return found + group

    def _example(self, record: dict[str, Any]) -> Example:
        letters = [letter.decode() for letter in record["letters"]]
        options = dict(zip(letters, (option.decode() for option in record["options"]), strict=True))
        text = prompt_text(record["question"].decode(), options, record["hint"].decode() or None)
        index = int(record["index"])
        return Example(
            id=str(index),
            messages=user_turn(text, self._image_first),
            image=np.asarray(record["image"]),
            target={"answer": record["answer"].decode(), "options": options},
            group=record["category"].decode(),
            cluster=str(index % ROTATION),
            max_new_tokens=MAX_NEW_TOKENS,
        )

    def score(self, example: Example, prediction: str) -> float:
        return float(extract_choice(prediction, example.target["options"]) == example.target["answer"])

    def aggregate(self, examples: Sequence[Example], predictions: Sequence[str]) -> dict[str, float]:
        rotations: dict[str, list[float]] = {}
        group_of = {}
        for example, prediction in zip(examples, predictions, strict=True):
            rotations.setdefault(example.cluster, []).append(self.score(example, prediction))
            group_of[example.cluster] = example.group
        circular = [min(scores) for scores in rotations.values()]
        return {
            "accuracy": float(np.mean(circular)),
            "vanilla_accuracy": float(np.mean([scores[0] for scores in rotations.values()])),
            **mean_by_group([group_of[cluster] for cluster in rotations], circular, "category"),
        }
