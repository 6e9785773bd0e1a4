"""Official multiple-choice TSVs, as VLMEvalKit has them: a row per question, base64 images in the cells.

Options are the columns A, B, C, ...; under circular evaluation (MMBench) a question's rotations are rows index,
index + 1e6, index + 2e6, ... An image cell may name the row that holds the image. Files are read twice: rows without
their images first, then the images of the questions that are asked.
"""

import base64
import binascii
import csv
import hashlib
import string
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path

from expertflow_jax.errors import InputError, brief
from expertflow_jax.tasks.files import rgb_bytes
from expertflow_jax.tasks.questions import Question

LETTERS = tuple(string.ascii_uppercase)
ROTATION = 1_000_000
IMAGE_REFERENCE = 64  # characters at most of an index, and of an image cell that names the row of one
_ABSENT = ("", "nan", "NaN")
# Texts that VLMEvalKit's reader (pandas) takes for a missing cell: it neither shows nor accepts such an option or hint.
_PANDAS_MISSING = frozenset(
    {"", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN", "<NA>"}
    | {"N/A", "NA", "NULL", "NaN", "None", "n/a", "nan", "null"}
)

Rows = dict[int, tuple[int, dict[str, str]]]
"""index -> (line number, row); a row's image cell holds the index of the row that has the image."""


def read_questions(path: Path, source: str, columns: Collection[str], circular: bool) -> list[Question]:
    """The TSV's questions, the rotations of one together, in order of first appearance.

    Args:
      source: where the file comes from, for messages.
      columns: that must be there, beside index, question and image.
      circular: whether rows index + k * 1e6 are rotations of row index.

    Returns:
      Questions whose image is the index of the row that holds it, and whose cluster is the first question about the
      same image, be it named or repeated. `target` is {"answer", "options"}, or None without a column "answer".

    Raises:
      InputError: the file is missing, columns are missing, a row is ragged, an index is no number or occurs twice, a
        question's first row is missing, an answer is not among the options, or an image refers to a row without.
    """
    rows = _read_rows(path, source, columns)
    _check_rows(path, source, rows, circular)
    groups: dict[int, list[int]] = {}
    for index in rows:
        groups.setdefault(index % ROTATION if circular else index, []).append(index)
    first_about: dict[str, str] = {}
    questions = []
    for question, members in groups.items():
        image = _holder(rows, min(members))
        cluster = first_about.setdefault(rows[int(image)][1]["image"], str(question))
        questions += [_question(rows, index, cluster, str(question) if circular else None) for index in sorted(members)]
    return questions


def _question(rows: Rows, index: int, cluster: str, rotates: str | None) -> Question:
    row = rows[index][1]
    l2 = row.get("l2-category") or row.get("l2_category")
    groups = {"category": row.get("category"), "l2-category": l2}
    options = {letter: text for letter, text in _options(row).items() if text not in _PANDAS_MISSING}
    return Question(
        id=str(index),
        text=row["question"],
        image=_holder(rows, index),
        target={"answer": row["answer"], "options": options} if "answer" in row else None,
        groups={name: group for name, group in groups.items() if group},
        cluster=cluster,
        rotates=rotates,
        columns={name: cell for name, cell in row.items() if name != "image"} | {"options": options},
    )


def hint_of(question: Question) -> str | None:
    """The row's hint, as VLMEvalKit reads it."""
    hint = question.columns.get("hint", "")
    return None if hint in _PANDAS_MISSING else hint


def read_images(path: Path, source: str, indices: Iterable[str]) -> Iterator[tuple[str, bytes]]:
    """(index, encoded RGB image) of the rows with these indices, in the order of the file.

    Raises:
      InputError: an image is damaged.
    """
    wanted = set(indices)
    for line, row in _lines(path, source):
        index = str(int(row["index"].removesuffix(".0")))
        if index not in wanted:
            continue
        where = f"{path}: line {line}: image"
        try:
            data = base64.b64decode(row["image"], validate=True)
        except (binascii.Error, ValueError) as error:
            raise InputError(f"{where} is not base64 ({error}); download the file again from {source}") from error
        yield index, rgb_bytes(data, where)


def _options(row: Mapping[str, str]) -> dict[str, str]:
    """letter -> text of the options that a row has."""
    return {letter: row[letter] for letter in LETTERS if row.get(letter, "") not in _ABSENT}


def _refers(cell: str) -> bool:
    """Whether an image cell names the row that holds the image."""
    return len(cell) <= IMAGE_REFERENCE and cell.isdecimal()


def _holder(rows: Rows, index: int) -> str:
    """Index of the row that holds the image of this one."""
    cell = rows[index][1]["image"]
    return str(int(cell)) if _refers(cell) else str(index)


def _check_rows(path: Path, source: str, rows: Rows, circular: bool) -> None:
    for index, (line, row) in rows.items():
        where = f"{path}: line {line}"
        if "answer" in row and row["answer"] not in _options(row):
            named = ", ".join(_options(row)) or "none"
            raise InputError(
                f"{where}: answer {row['answer']!r} is not among the row's options ({named}); "
                f"correct the row or download the file again from {source}"
            )
        if circular and index % ROTATION not in rows:
            raise InputError(
                f"{where}: row {index} rotates the options of row {index % ROTATION}, which is missing; "
                f"download the file again from {source}"
            )
        if _refers(row["image"]):
            holder = rows.get(int(row["image"]))
            if holder is None or _refers(holder[1]["image"]):
                raise InputError(
                    f"{where}: its image is that of row {row['image']}, which has none; "
                    f"download the file again from {source}"
                )


def _read_rows(path: Path, source: str, columns: Collection[str]) -> Rows:
    """All rows; an image itself is replaced by its digest."""
    rows: Rows = {}
    for line, row in _lines(path, source, ("index", "question", *columns, "image")):
        number = row["index"].removesuffix(".0")  # as pandas writes a column that once had a gap
        if not number.isdecimal() or len(number) > IMAGE_REFERENCE:
            raise InputError(f"{path}: line {line}: index '{brief(row['index'])}' is no number; correct the row")
        index = int(number)
        if index in rows:
            raise InputError(f"{path}: line {line}: index {index} occurs twice; remove one of the rows")
        if not _refers(row["image"]):
            row["image"] = "blake2b " + hashlib.blake2b(row["image"].encode(), digest_size=16).hexdigest()
        rows[index] = (line, row)
    if not rows:
        raise InputError(f"{path}: no rows; download it again from {source}")
    return rows


def _lines(path: Path, source: str, columns: Collection[str] = ()) -> Iterator[tuple[int, dict[str, str]]]:
    """(line number, row) of each row, images included."""
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))  # an image is one cell
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, delimiter="\t", strict=True)
            if missing := [name for name in columns if name not in (reader.fieldnames or ())]:
                raise InputError(f"{path}: no column {missing[0]!r}; get the file from {source}")
            for row in reader:
                if None in row or None in row.values():
                    raise InputError(
                        f"{path}: line {reader.line_num} has another number of cells than the header; "
                        f"download the file again from {source}"
                    )
                yield reader.line_num, row
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}; get it from {source}") from error
    except (csv.Error, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not a TSV file ({error}); download it again from {source}") from error
