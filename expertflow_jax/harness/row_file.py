"""A file of rows, one JSON object per line, of which every line is whole: what a killed process left is mended.

A row is one write of one line, synced; rows that belong together replace the file at once. So a row that can be read
was finished, and a last line without its end is one that was not, however much of it is there.
"""

import json
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from expertflow_jax import interrupts
from expertflow_jax.errors import InputError, brief
from expertflow_jax.files import read_whole, sync_folder, write_atomically, write_error

Parse = Callable[[Any], Any]
_REMEDY = "delete the line to run it again"


def parse_mapping(value: Any) -> dict[str, Any]:
    """The row as it stands; raises ValueError if it is no JSON object."""
    if not isinstance(value, dict):
        raise ValueError("not a JSON object")
    return value


def with_keys(*keys: str) -> Parse:
    """A `parse` of JSON objects that have these keys at least."""

    def parse(value: Any) -> dict[str, Any]:
        row = parse_mapping(value)
        if missing := [key for key in keys if key not in row]:
            raise ValueError(f"no {missing[0]!r}")
        return row

    return parse


class RowFile:
    """The rows of a .jsonl file, which is this process's to write to (see `Workdir`).

    Args:
      path: of the file; made with the first row.
      parse: from a line's JSON value to a row; what it raises (ValueError, TypeError, KeyError) names the line.
      plain: from a row to a JSON object.

    Raises:
      InputError: a damaged line that is not the last.
    """

    def __init__(self, path: Path, parse: Parse = parse_mapping, plain: Callable[[Any], Mapping[str, Any]] = dict):
        self.path = path
        self._plain = plain
        _cut_torn_line(path)
        self.rows: list[Any] = read_rows(path, parse)

    def holds(self, place: Mapping[str, Any]) -> bool:
        """Whether a row has all these values; of rows that are mappings."""
        return any(place.items() <= row.items() for row in self.rows)

    def append(self, row: Any) -> None:
        """Adds a finished row; returns when it is on disk. Here also ends a run that was told to (`interrupts`)."""
        _append_line(self.path, self._line(row))
        self.rows.append(row)
        interrupts.check()

    def append_together(self, rows: Iterable[Any]) -> None:
        """Adds rows that belong together: after a kill all of them are there, or none."""
        self.replace([*self.rows, *rows])
        interrupts.check()

    def replace(self, rows: Iterable[Any]) -> None:
        """Puts these rows in place of all that are there, at once."""
        rows = list(rows)
        write_atomically(self.path, "".join(self._line(row) for row in rows))
        self.rows = rows

    def keep(self, wanted: Callable[[Any], bool]) -> None:
        """Drops the rows of which `wanted` is false."""
        rows = [row for row in self.rows if wanted(row)]
        if len(rows) < len(self.rows):
            self.replace(rows)

    def _line(self, row: Any) -> str:
        return json.dumps(self._plain(row)) + "\n"


def read_rows(path: Path, parse: Parse = parse_mapping, remedy: str = _REMEDY) -> list[Any]:
    """The rows of a .jsonl file; a last line that a kill tore is left out, the file is left as it is.

    Raises:
      InputError: a damaged row, or a file that cannot be read.
    """
    content = read_whole(path, "name another --workdir") if path.exists() else b""
    rows = []
    *lines, _ = content.split(b"\n")
    for number, line in enumerate(lines, 1):
        try:
            rows.append(parse(json.loads(line)))
        except RecursionError as error:
            raise InputError(f"{path}, line {number}: nested too deeply; {remedy}") from error
        except (ValueError, TypeError, KeyError) as error:
            raise InputError(f"{path}, line {number}: {brief(str(error), 400)}; {remedy}") from error
    return rows


def _cut_torn_line(path: Path) -> None:
    """Cuts what follows the last line end: a row that was being written when the process died."""
    if not path.is_file():
        return
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        _truncate(path, whole)


def _append_line(path: Path, line: str) -> None:
    try:
        size = path.stat().st_size if path.exists() else None
        try:
            with open(path, "ab", buffering=0) as file:
                data = memoryview(line.encode())
                while data:
                    data = data[file.write(data) :]
                os.fsync(file.fileno())
        except OSError:
            if path.exists():  # a full disk may have taken half a line
                _truncate(path, size or 0)
            raise
        if size is None:
            sync_folder(path.parent)
    except OSError as error:
        raise write_error(path, error) from error


def _truncate(path: Path, size: int) -> None:
    try:
        with open(path, "r+b") as file:
            file.truncate(size)
            os.fsync(file.fileno())
    except OSError as error:
        raise write_error(path, error) from error
