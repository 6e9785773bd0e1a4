"""Prepares a TFDS builder's data once per version of its input files."""

import contextlib
import hashlib
import io
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds
from rich.console import Console


def input_digest(files: Sequence[Path]) -> str:
    """Names a version of the input by its files' sizes and contents (the first and last MiB of large ones)."""
    digest = hashlib.sha256()
    for path in files:
        size = path.stat().st_size
        digest.update(f"{path.name}:{size};".encode())
        with path.open("rb") as file:
            digest.update(file.read(1 << 20))
            file.seek(max(0, size - (1 << 20)))
            digest.update(file.read(1 << 20))
    return digest.hexdigest()[:12]


def prepared(builder_class: Any, data_dir: Path, split: str) -> Any:
    """A random-access data source of the split, prepared under DATA/tfds if need be (atomically, by TFDS).

    Raises:
      InputError: the official files are missing or malformed.
    """
    builder_class.check(data_dir, split)
    console = Console(stderr=True)
    status = console.status(f"preparing {builder_class.name} {split}")
    with _quiet(), status if console.is_terminal else contextlib.nullcontext():
        builder = builder_class(
            data_dir=str(data_dir / "tfds" / f"{split}-{input_digest(builder_class.inputs(data_dir, split))}"),
            file_format="array_record",
            official_dir=data_dir,
            official_split=split,
        )
        builder.download_and_prepare()
        return builder.as_data_source(split=split)


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
