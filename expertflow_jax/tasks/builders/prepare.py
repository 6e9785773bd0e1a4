"""Prepares a TFDS builder's data once per version of its input files.

Prepared data lies in DATA/tfds/SPLIT-DIGEST, where DIGEST is that of every byte of the files it is made from, images
included; or in the workdir where DATA cannot be written. What lies there is compared with its own digest too, and made
again where it is damaged.
"""

import contextlib
import fcntl
import io
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds
from rich.console import Console

from expertflow_jax.errors import InputError
from expertflow_jax.files import write_atomically, write_error
from expertflow_jax.tasks.builders.digests import Digests

SEAL = "prepared.sha256"  # of a folder's files, written last
MEMORY = "digests.json"


def prepared(builder_class: Any, data_dir: Path, split: str, elsewhere: Path | None = None) -> Any:
    """A random-access data source of the split, prepared if need be (atomically, by TFDS).

    Args:
      builder_class: of VqaV2Builder's kind.
      data_dir: holds the official files; prepared data lies under DATA/tfds.
      elsewhere: a folder for prepared data where that one cannot be written.

    Raises:
      InputError: the official files are missing or malformed, or prepared data can be written nowhere.
    """
    builder_class.check(data_dir, split)
    roots = [data_dir / "tfds", *([] if elsewhere is None else [elsewhere])]
    root = next((root for root in roots if _writable(root)), None)
    inputs = Digests(None if root is None else root / f"{builder_class.name}-{split}-{MEMORY}")
    key = inputs.together(builder_class.inputs(data_dir, split))
    inputs.remember()
    name = f"{split}-{key[:16]}"

    def builder(folder: Path) -> Any:
        return builder_class(
            data_dir=str(folder), file_format="array_record", official_dir=data_dir, official_split=split
        )

    with _quiet():
        for place in roots:
            if _sealed(place / name, root):
                return builder(place / name).as_data_source(split=split)
        if root is None:
            raise InputError(
                f"{data_dir / 'tfds'}: cannot be written, and prepared data lies there; copy the benchmark to a folder "
                "that can be written to"
            )
        folder = root / name
        with _alone(root / f".{name}.lock"):
            if not _sealed(folder, root):  # another process may have prepared it meanwhile
                _prepare(builder, folder)
            return builder(folder).as_data_source(split=split)


def _prepare(builder: Any, folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    console = Console(stderr=True)
    made = builder(folder)
    status = console.status(f"preparing {made.name} {folder.name.partition('-')[0]}")
    try:
        with status if console.is_terminal else contextlib.nullcontext():
            made.download_and_prepare()
    except OSError as error:
        raise write_error(folder, error) from error
    write_atomically(folder / SEAL, Digests(None).together(_files(folder)))


def _files(folder: Path) -> list[Path]:
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return [path for path in paths if path.name not in (SEAL, MEMORY) and not path.name.endswith(".partial")]


def _sealed(folder: Path, root: Path | None) -> bool:
    """Whether prepared data lies in `folder`, and is as it was written."""
    try:
        seal = (folder / SEAL).read_text(encoding="utf-8")
    except (OSError, ValueError):
        return False
    inside = root is not None and folder.is_relative_to(root)
    memory = root / f"{folder.name}-{MEMORY}" if root is not None and inside else None
    digests = Digests(memory)
    whole = digests.together(_files(folder)) == seal
    digests.remember()
    return whole


def _writable(root: Path) -> bool:
    probe = root / ".writable"
    try:
        root.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink(missing_ok=True)
    except OSError:
        return False
    return True


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Waits for other processes that prepare the same."""
    try:
        with path.open("w", encoding="utf-8") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
    except OSError as error:
        raise write_error(path, error) from error


# TFDS says at every start how OpenCV would decode images faster; nothing here waits for that.
logging.getLogger("absl").addFilter(lambda record: "OpenCV is not installed" not in record.getMessage())


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without TFDS's bars of its inner steps and its remarks."""
    logger = logging.getLogger("absl")
    before = logger.level
    logger.setLevel(logging.ERROR)
    tfds.disable_progress_bar()
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        tfds.enable_progress_bar()
        logger.setLevel(before)
