"""Plain text and prompts from a user's own files: one JSON object per line, or a text file as it is.

DATA/text/{train,val}.jsonl   {"text": "..."} or {"input_ids": [...]}: scored teacher-forced (perplexity)
DATA/text/{train,val}.txt     one document
DATA/prompts/{train,val}.jsonl   {"prompt": "..."} or {"messages": [...]}, with "answer" if a study is to score it

Messages hold their pictures (`processing.content`): a data: URL, or a path, which counts from DATA/prompts.
"""

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from expertflow_jax.errors import InputError
from expertflow_jax.processing import check_messages, split_pictures
from expertflow_jax.tasks.base import Example, scores_by_group

SPLITS = ("train", "val")
MAX_NEW_TOKENS = 32


def split_file(data_dir: Path, name: str, split: str, endings: Sequence[str]) -> Path:
    """The file of a split; raises InputError if there is none."""
    if split not in SPLITS:
        raise InputError(f"{name}: no split {split!r}; known: {', '.join(SPLITS)}")
    paths = [data_dir / name / f"{split}{ending}" for ending in endings]
    there = next((path for path in paths if path.is_file()), None)
    if there is None:
        raise InputError(f"{paths[0]}: no such file; task {name!r} reads {' or '.join(map(str, paths))}")
    return there


def read_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(place for messages, object) of each line of a JSONL file; raises InputError for a line that holds none."""
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")  # other ends of lines may stand inside a text
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read as UTF-8 text ({error})") from error
    rows = [(f"{path}, line {number}", line) for number, line in enumerate(lines, 1) if line.strip()]
    if not rows:
        raise InputError(f"{path}: no lines; write one JSON object per line")
    for where, line in rows:
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{where}: not JSON ({error})") from error
        if not isinstance(row, dict):
            raise InputError(f"{where}: want a JSON object")
        yield where, row


class Text:
    """Documents, scored by how well the model foretells each next token; `prediction` lists its choices."""

    name = "text"
    evaluator = "share of next tokens foretold"
    circular = False
    teacher_forced = True

    def __init__(self, data_dir: Path, split: str, *, image_first: bool = False):
        self.split = split
        self._path = split_file(data_dir, self.name, split, (".jsonl", ".txt"))

    def inputs(self) -> list[Path]:
        """The file that the examples are read from."""
        return [self._path]

    def examples(self, limit: int | None = None) -> list[Example]:
        if self._path.suffix == ".txt":
            try:
                documents = [_document("0", text=self._path.read_text(encoding="utf-8"))]
            except UnicodeDecodeError as error:
                raise InputError(f"{self._path}: not UTF-8 text ({error})") from error
        else:
            documents = [_row_document(str(i), *row) for i, row in enumerate(read_rows(self._path))]
        return documents[:limit]

    def score(self, example: Example, prediction: str) -> float:
        target = example.target
        hits = sum(int(token) == wanted for token, wanted in zip(prediction.split(), target, strict=True))
        return hits / len(target)

    def aggregate(self, examples: Sequence[Example], predictions: Sequence[str]) -> dict[str, float]:
        return _aggregate(self, examples, predictions)


def _document(name: str, text: str | None = None, input_ids: Sequence[int] | None = None) -> Example:
    ids = None if input_ids is None else tuple(input_ids)
    return Example(name, [], None, None, "text", name, 0, text=text, input_ids=ids, groups={"group": "text"})


def _row_document(name: str, where: str, row: dict[str, Any]) -> Example:
    text, ids = row.get("text"), row.get("input_ids")
    if isinstance(text, str) and text and ids is None:
        return _document(name, text=text)
    whole = isinstance(ids, list) and len(ids) > 1 and all(type(i) is int and 0 <= i < 2**31 for i in ids)
    if whole and text is None:
        return _document(name, input_ids=ids)
    raise InputError(f'{where}: want either "text" (a string) or "input_ids" (two or more token ids)')


def windows(examples: Sequence[Example], ids: Sequence[np.ndarray], length: int) -> list[Example]:
    """Documents cut into sequences of at most `length` tokens, each with its own next tokens as target.

    Args:
      examples: of a teacher-forced task.
      ids: int [tokens] of each.

    Raises:
      InputError: no document has two tokens.
    """
    sequences = []
    for example, tokens in zip(examples, ids, strict=True):
        for start in range(0, len(tokens), length):
            part = tuple(int(i) for i in tokens[start : start + length])
            if len(part) > 1:
                name = f"{example.id}#{start}"
                sequences.append(
                    dataclasses.replace(example, id=name, input_ids=part, text=None, target=list(part[1:]))
                )
    if not sequences:
        raise InputError("task 'text': no document has two tokens; there is nothing to foretell")
    return sequences


class Prompts:
    """A user's prompts, answered greedily; an answer is right if it is the file's, spaces and case aside."""

    name = "prompts"
    evaluator = "equal texts, spaces and case aside"
    circular = False
    teacher_forced = False

    def __init__(self, data_dir: Path, split: str, *, image_first: bool = False):
        self.split = split
        self._path = split_file(data_dir, self.name, split, (".jsonl",))

    def inputs(self) -> list[Path]:
        """The file that the examples are read from, and the pictures that it names."""
        pictures = [item.get("image") for e in self.examples() for turn in e.messages for item in _items(turn)]
        return [self._path, *dict.fromkeys(Path(picture) for picture in pictures if isinstance(picture, str | Path))]

    def examples(self, limit: int | None = None) -> list[Example]:
        return [self._example(str(i), *row) for i, row in enumerate(read_rows(self._path))][:limit]

    def _example(self, name: str, where: str, row: dict[str, Any]) -> Example:
        prompt, messages, answer = row.get("prompt"), row.get("messages"), row.get("answer")
        if isinstance(prompt, str) and prompt:
            messages = [{"role": "user", "content": prompt}]
        elif messages is None:
            raise InputError(f'{where}: want "prompt" (a string) or "messages" (a conversation)')
        else:
            messages = self._with_pictures(messages, f'{where}: "messages"')
        if answer is not None and not isinstance(answer, str):
            raise InputError(f'{where}: "answer" is {answer!r}, want a string')
        limit = row.get("max_new_tokens", MAX_NEW_TOKENS)
        if type(limit) is not int or limit < 1:
            raise InputError(f'{where}: "max_new_tokens" is {limit!r}, want a whole number of at least 1')
        group = str(row.get("group", "prompts"))
        return Example(name, messages, None, answer, group, name, limit, groups={"group": group})

    def _with_pictures(self, messages: Any, where: str) -> list[dict[str, Any]]:
        """The conversation with each picture as {"type": "image", "image": path or bytes of a file}."""
        check_messages(messages, where)
        turns, sources = split_pictures(messages, where)
        if None in sources:
            raise InputError(
                f'{where}: an image item holds no picture; write {{"type": "image", "image": a path that counts from '
                f"{self._path.parent}, or a data: URL}}"
            )
        pictures = iter(source if isinstance(source, bytes) else self._path.parent / source for source in sources)
        for turn in turns:
            if isinstance(turn["content"], list):
                turn["content"] = [
                    {**item, "image": next(pictures)} if item == {"type": "image"} else item for item in turn["content"]
                ]
        return turns

    def score(self, example: Example, prediction: str) -> float:
        if example.target is None:
            raise InputError(f'{self._path}: prompt {example.id} has no "answer"; a study needs one to score')
        return float(_plain(prediction) == _plain(example.target))

    def aggregate(self, examples: Sequence[Example], predictions: Sequence[str]) -> dict[str, float]:
        return _aggregate(self, examples, predictions)


def _items(message: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    content = message.get("content")
    return content if isinstance(content, list) else []


def _plain(text: str) -> str:
    return " ".join(text.lower().split())


def _aggregate(task: "Text | Prompts", examples: Sequence[Example], predictions: Sequence[str]) -> dict[str, float]:
    scores = [task.score(e, p) for e, p in zip(examples, predictions, strict=True)]
    return {"accuracy": float(np.mean(scores)), **scores_by_group(examples, scores)}
