"""Benchmarks that are written here: by one process at a time, all at once, and known again by their checksums."""

import contextlib
import fcntl
import hashlib
import shutil
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[tuple[Path, Path]]:
    """Two free paths beside `folder`, of no other process; what a killed one left there is removed.

    Yields:
      An empty folder to write to, and where an earlier folder may be moved to.
    """
    partial, old = (folder.with_name(f".{folder.name}.{kind}") for kind in ("partial", "old"))
    with folder.with_name(f".{folder.name}.lock").open("w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for path in (partial, old):
            shutil.rmtree(path, ignore_errors=True)
        partial.mkdir()
        try:
            yield partial, old
        finally:
            for path in (partial, old):
                shutil.rmtree(path, ignore_errors=True)


def checksums(data_dir: Path) -> dict[str, str]:
    """SHA-256 of every question file below a data folder, and of all images of a split together."""
    sums = {}
    for path in sorted([*data_dir.glob("vqa_v2/*.json"), *data_dir.glob("mmbench/*.tsv")]):
        sums[str(path.relative_to(data_dir))] = hashlib.sha256(path.read_bytes()).hexdigest()
    for folder in sorted(data_dir.glob("vqa_v2/*/")):
        digest = hashlib.sha256()
        for path in sorted(folder.iterdir()):
            digest.update(path.name.encode() + path.read_bytes())
        sums[str(folder.relative_to(data_dir))] = digest.hexdigest()
    return sums
