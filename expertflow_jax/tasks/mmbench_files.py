"""MMBench's official TSV: base64 images, up to four options; rotations of a question are rows of their own.

DATA/mmbench/MMBench_DEV_EN.tsv
"""

import base64
import binascii
import csv
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from expertflow_jax.errors import InputError
from expertflow_jax.tasks.files import rgb_bytes

SOURCE = "https://opencompass.openxlab.space/utils/benchmarks/MMBench/"
LETTERS = ("A", "B", "C", "D")
COLUMNS = ("index", "question", "A", "B", "answer", "category", "image")
ROTATION = 1_000_000
SPLITS = {"train": "MMBench_TRAIN_EN.tsv", "val": "MMBench_DEV_EN.tsv"}  # official: dev; of test no answers are public
IMAGE_REFERENCE = 64  # characters at most of an image cell that names another row
_ABSENT = ("", "nan", "NaN")

Rows = dict[int, tuple[int, dict[str, str]]]
"""index -> (line number, row)."""


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
