"""Files that are either whole or absent, and one clear line where one cannot be written."""

import contextlib
import errno
import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from expertflow_jax.errors import InputError

PARTIAL = ".partial"  # ends the name of a file that is being written

_REMEDIES = {
    errno.ENOSPC: "free some space and rerun",
    errno.EDQUOT: "free some space and rerun",
    errno.EFBIG: "raise the limit of a file's size (ulimit -f) and rerun",
    errno.EROFS: "name a folder that can be written to",
    errno.EACCES: "name a folder that can be written to",
    errno.EPERM: "name a folder that can be written to",
    errno.ENAMETOOLONG: "shorten the name",
    errno.EMFILE: "raise the limit of open files (ulimit -n) and rerun",
}
_OTHER_REMEDY = "name another path"


def write_error(path: Path | str, error: OSError) -> InputError:
    """What to tell a user whose file cannot be written: one line, the path, the reason, and the remedy."""
    reason = error.strerror or type(error).__name__
    return InputError(f"{path}: cannot be written ({reason}); {_REMEDIES.get(error.errno or 0, _OTHER_REMEDY)}")


def refused_write(error: Exception) -> OSError | None:
    """Why the machine refused to write, if that is what the error is about rather than something senseless that the
    program asked for; of the machine's own errors some libraries keep no more than the text."""
    if isinstance(error, OSError):
        return error if error.errno in _REMEDIES else None
    reasons = {code: os.strerror(code) for code in _REMEDIES}
    return next((OSError(code, text) for code, text in reasons.items() if text in str(error)), None)


@contextlib.contextmanager
def whole_file(path: str | Path) -> Iterator[BinaryIO]:
    """A file to write to: synced and renamed to `path` when the block ends, removed if it fails.

    Raises:
      InputError: it cannot be written; nothing is left of it, and an earlier file of this name stays as it was.
    """
    path = Path(path)
    partial = path.with_name(path.name + PARTIAL)
    try:
        try:
            with open(partial, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, path)
            sync_folder(path.parent)
        except BaseException:
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise write_error(path, error) from error


def write_atomically(path: str | Path, content: bytes | str) -> None:
    """Writes `content` (text as UTF-8) so that `path` is whole or as before, also after a kill or a power cut.

    Raises:
      InputError: it cannot be written.
    """
    with whole_file(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


def without_waiting(path: str, flags: int) -> int:
    """An `opener` that does not wait for a pipe's other end; regular files are opened as ever."""
    return os.open(path, flags | os.O_NONBLOCK, 0o666)


def read_whole(path: Path | str, remedy: str) -> bytes:
    """Content of a regular file; no pipe is waited for, and no device read without end.

    Raises:
      InputError: it is none, or cannot be read; one line that ends with `remedy`.
    """
    try:
        with open(path, "rb", opener=without_waiting) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise InputError(f"{path}: not a regular file; {remedy}")
            return file.read()
    except (OSError, ValueError) as error:  # ValueError: no path of a file, such as one with NUL
        if isinstance(error, InputError):
            raise
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise InputError(f"{path}: cannot be read ({reason}); {remedy}") from error
    except MemoryError as error:
        raise InputError(f"{path}: larger than the memory; {remedy}") from error


def write_json(path: str | Path, value: Any, indent: int = 2) -> None:
    """Writes `value` as JSON, whole or not at all; raises InputError where that cannot be."""
    write_atomically(path, json.dumps(value, indent=indent) + "\n")


def make_folder(path: str | Path) -> Path:
    """The folder at `path`, made with its parents if need be; raises InputError if that cannot be."""
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise write_error(path, error) from error
    return Path(path)


def check_room(path: str | Path, size: int) -> None:
    """Raises InputError if `size` bytes cannot be written at `path`; for libraries that fail with pages of their own.

    The space is reserved, which is quick, and given back.
    """
    probe = Path(path).with_name(Path(path).name + PARTIAL)
    try:
        try:
            with open(probe, "wb") as file:
                os.posix_fallocate(file.fileno(), 0, max(size, 1))
        finally:
            probe.unlink(missing_ok=True)
    except OSError as error:
        raise write_error(path, error) from error


def sync_folder(folder: Path) -> None:
    """Makes a new name in `folder` survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
