"""Prepares the questions that are asked once per version of their files: the whole split, its beginning, or a sample.

Prepared data lies in DATA/tfds/SPLIT-DIGEST, where DIGEST is that of every byte of the question files and of what is
asked; or in the workdir where DATA cannot be written. It is compared with its own digest and with the images that it
was made from, and made again where one differs.
"""

import contextlib
import fcntl
import io
import json
import logging
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import tensorflow_datasets as tfds
from jaxtyping import UInt8
from PIL import Image
from rich.console import Console
from rich.progress import Progress

from expertflow_jax.errors import InputError
from expertflow_jax.files import read_whole, refused_write, write_atomically, write_error
from expertflow_jax.tasks.builders.digests import Digests
from expertflow_jax.tasks.builders.questions import QuestionsBuilder, question_of
from expertflow_jax.tasks.questions import Question

SEAL = "prepared.sha256"  # of a folder's files, written last
IMAGES = "images.json"  # digests of the image files that a folder was made from
MEMORY = "digests.json"


class Benchmark(Protocol):
    """What is prepared; see `official.OfficialTask`."""

    split: str

    @property
    def name(self) -> str: ...

    @property
    def data_dir(self) -> Path: ...

    def question_files(self) -> list[Path]: ...

    def select(self, limit: int | None, seed: int | None) -> list[Question]: ...

    def image_file(self, name: str) -> Path | None: ...

    def images(self, names: Iterable[str]) -> Iterator[tuple[str, bytes]]: ...


Asked = list[tuple[Question, UInt8[np.ndarray, "H W 3"]]]
"""Questions with their images; questions about one image share the array."""


def prepared(
    benchmark: Benchmark, limit: int | None, seed: int | None, elsewhere: Path | None = None
) -> tuple[Asked, list[Path]]:
    """The questions that are asked, prepared if need be (atomically, by TFDS), and the image files behind them.

    Args:
      limit, seed: see `tasks.questions.select`.
      elsewhere: a folder for prepared data where DATA/tfds cannot be written.

    Raises:
      InputError: the official files are malformed, or prepared data can be written nowhere.
    """
    roots = [benchmark.data_dir / "tfds", *([] if elsewhere is None else [elsewhere])]
    root = next((root for root in roots if _writable(root)), None)
    inputs = Digests(None if root is None else root / f"{benchmark.name}-{benchmark.split}-{MEMORY}")
    key = inputs.together(benchmark.question_files(), f"{QuestionsBuilder.VERSION} {limit} {seed}")
    name = f"{benchmark.split}-{key[:16]}"
    try:
        for place in roots:
            if _whole(place / name, root, benchmark, inputs):
                return _read(place / name, benchmark)
        if root is None:
            raise InputError(
                f"{benchmark.data_dir / 'tfds'}: cannot be written, and prepared data lies there; copy the benchmark "
                "to a folder that can be written to"
            )
        folder = root / name
        with _alone(root / f".{name}.lock"):
            if not _whole(folder, root, benchmark, inputs):  # another process may have prepared it meanwhile
                _prepare(benchmark, benchmark.select(limit, seed), folder, inputs)
            return _read(folder, benchmark)
    finally:
        inputs.remember()


def _builder(benchmark: Benchmark, folder: Path, **content: Any) -> QuestionsBuilder:
    return QuestionsBuilder(
        benchmark=benchmark.name,
        split=benchmark.split,
        data_dir=str(folder),
        file_format="array_record",
        **content,
    )


def _prepare(benchmark: Benchmark, questions: list[Question], folder: Path, inputs: Digests) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    console = Console(stderr=True)
    names = sorted({question.image for question in questions})
    with _quiet(), Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        bar = progress.add_task(f"preparing {benchmark.name} {benchmark.split}: images", total=len(names))

        def images(wanted: Iterable[str]) -> Iterator[tuple[str, bytes]]:
            for image in benchmark.images(wanted):
                yield image
                progress.advance(bar)

        try:
            _builder(benchmark, folder, questions=questions, images=images).download_and_prepare()
        except (OSError, RuntimeError) as error:
            if (reason := refused_write(error)) is None:
                raise
            raise write_error(folder, reason) from error
    write_atomically(folder / IMAGES, json.dumps(_image_digests(benchmark, names, inputs)))
    write_atomically(folder / SEAL, Digests(None).together(_files(folder)))


def _image_digests(benchmark: Benchmark, names: Iterable[str], inputs: Digests) -> dict[str, str]:
    paths = {name: benchmark.image_file(name) for name in names}
    return {name: inputs.of(path) for name, path in paths.items() if path is not None}


def _read(folder: Path, benchmark: Benchmark) -> tuple[Asked, list[Path]]:
    with _quiet():
        source = _builder(benchmark, folder).as_data_source(split=benchmark.split)
    images: dict[int, np.ndarray] = {}  # number of the record that holds it -> uint8 [H, W, 3]
    asked: Asked = []
    for number in range(len(source)):
        record = source[number]
        if record["image"]:
            with Image.open(io.BytesIO(record["image"])) as image:
                images[number] = np.asarray(image)
        asked.append((question_of(record), images[int(record["holder"])]))
    files = (benchmark.image_file(name) for name in sorted({question.image for question, _ in asked}))
    return asked, [path for path in files if path is not None]


def _files(folder: Path) -> list[Path]:
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return [path for path in paths if path.name not in (SEAL, MEMORY) and not path.name.endswith(".partial")]


def _whole(folder: Path, root: Path | None, benchmark: Benchmark, inputs: Digests) -> bool:
    """Whether prepared data lies in `folder`, is as it was written, and its images are as they were."""
    try:
        seal = (folder / SEAL).read_text(encoding="utf-8")
    except (OSError, ValueError):
        return False
    inside = root is not None and folder.is_relative_to(root)
    digests = Digests(root / f"{folder.name}-{MEMORY}" if root is not None and inside else None)
    whole = digests.together(_files(folder)) == seal
    digests.remember()
    if not whole:
        return False
    images = json.loads(read_whole(folder / IMAGES, "delete its folder"))
    return _image_digests(benchmark, images, inputs) == images


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
