"""Files that are either whole or absent, and a readable difference of two JSON trees."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_ABSENT = "absent"


def write_atomically(path: Path, content: bytes) -> None:
    """Writes `content` under a temporary name beside `path`, syncs it, and renames it into place."""
    partial = path.with_name(path.name + ".partial")
    with open(partial, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Makes a new name in `folder` survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def differences(before: Any, after: Any, path: str = "") -> list[str]:
    """What differs between two JSON trees, as lines of the form "key.key: before, now after"."""
    if isinstance(before, Mapping) and isinstance(after, Mapping):
        found = []
        for key in sorted({*before, *after}):
            where = f"{path}.{key}" if path else str(key)
            found += differences(before.get(key, _ABSENT), after.get(key, _ABSENT), where)
        return found
    return [] if before == after else [f"{path}: {before!r}, now {after!r}"]
