"""Digests of files by their whole content, remembered beside what was made from them.

A file whose size, times and inode are as they were when it was read has its remembered digest: 40,000 images of COCO
take a second. No program can set the time at which an inode changed last, so a file that was replaced by one of the
same size and time of modification is read again. A file changed in the last seconds is read again next time, since file
systems tell times apart by milliseconds only.
"""

import contextlib
import hashlib
import json
import os
import stat
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from expertflow_jax.errors import InputError
from expertflow_jax.files import read_whole, write_atomically

SETTLED_SECONDS = 3
_PIECE = 1 << 20

Stamp = list[int]  # size, time of modification and of change in nanoseconds, inode


class Digests:
    """Digests of files, remembered in a JSON file."""

    def __init__(self, memory: Path | None):
        """
        Args:
          memory: a file that need not be there; what it holds counts as far as it can be read. None: nothing is kept.
        """
        self._memory = memory
        self._entries: dict[str, tuple[Stamp, str]] = {}
        if memory is not None:
            with contextlib.suppress(OSError, ValueError, RecursionError, TypeError, AttributeError):
                values: Any = json.loads(read_whole(memory, "delete it"))
                self._entries = {str(name): (list(stamp), str(digest)) for name, (stamp, digest) in values.items()}

    def of(self, path: Path) -> str:
        """SHA-256 of a file's content; "" where there is no file.

        Raises:
          InputError: it is there and cannot be read.
        """
        name = str(path.absolute())
        try:
            status = os.stat(path)
            if not stat.S_ISREG(status.st_mode) and not stat.S_ISDIR(status.st_mode):  # a pipe or a device has no end
                raise InputError(f"{path}: not a regular file; put one in its place")
            stamp = [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]
            known, digest = self._entries.get(name, ([], ""))
            if known == stamp:
                return digest
            digest = _content(path)
        except (FileNotFoundError, NotADirectoryError):
            self._entries.pop(name, None)
            return ""
        except OSError as error:
            raise InputError(f"{path}: {error.strerror}; it must be readable") from error
        if time.time_ns() - max(stamp[1:3]) > SETTLED_SECONDS * 10**9:
            self._entries[name] = (stamp, digest)
        else:
            self._entries.pop(name, None)
        return digest

    def together(self, paths: Iterable[Path], words: str = "") -> str:
        """One digest of `words`, and of the names and contents of files in their order."""
        whole = hashlib.sha256(words.encode())
        for path in paths:
            whole.update(f"{path.name}\0{self.of(path)}\n".encode())
        return whole.hexdigest()

    def remember(self) -> None:
        """Writes what is known, where that is possible."""
        if self._memory is not None:
            with contextlib.suppress(InputError):
                write_atomically(self._memory, json.dumps(self._entries))


def _content(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while piece := file.read(_PIECE):
            digest.update(piece)
    return digest.hexdigest()
