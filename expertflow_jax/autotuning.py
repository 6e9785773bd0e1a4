"""XLA's autotuning results are kept beside the compiled programs and loaded by the next process.

On a GPU XLA times several tilings of a matrix product and takes the fastest: two processes may choose otherwise, and
then their results differ in the last bits (openxla/xla, docs/determinism; xla#37902 shows that the cache of each
fusion, which JAX turns on with its own, does not keep all). A study goes on in another process, so what the first one
chose has to stay.

XLA is told one file to read and another to write, always the same two: their names count to the key of a compiled
program. What was written is taken over when the next process starts, if it is whole.
"""

import hashlib
import os
import uuid
from pathlib import Path

_LOAD, _DUMP = "--xla_gpu_load_autotune_results_from", "--xla_gpu_dump_autotune_results_to"
_PREFIX, _SUFFIX, _NEW = "autotune-", ".textproto", ".pbtxt"  # the endings by which XLA writes text


def keep(folder: Path) -> Path | None:
    """Has XLA read and keep its choices in `folder`; to be called before the backend starts.

    Returns:
      the file that will be read; None where the user's XLA_FLAGS name files, or none can be written.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    if _LOAD in flags or _DUMP in flags or " " in str(folder):  # flags are separated by spaces
        return None
    try:
        kept = _kept_file(folder)
    except OSError:
        return None
    os.environ["XLA_FLAGS"] = f"{flags} {_LOAD}={kept} {_DUMP}={kept.with_suffix(_NEW)}".strip()
    return kept


def describe(flags: str) -> dict[str, str] | None:
    """What the flags say of the choices that this process began with.

    Args:
      flags: of XLA_FLAGS.

    Returns:
      the `file`, by name alone, and the `digest` of its contents; None where no results are loaded.
    """
    values = [flag.partition("=")[2] for flag in flags.split() if flag.startswith(f"{_LOAD}=")]
    if not values:
        return None
    path = Path(values[-1])
    try:
        content = path.read_bytes()
    except OSError:
        content = b""
    return {"file": path.name, "digest": hashlib.blake2b(content, digest_size=8).hexdigest()}


def other_flags(flags: str) -> str:
    """XLA_FLAGS without those that name files of this machine."""
    return " ".join(flag for flag in flags.split() if flag.partition("=")[0] not in (_LOAD, _DUMP))


def _kept_file(folder: Path) -> Path:
    """The file of results in `folder`, or an empty one of a new name, with what the last process has added."""
    folder.mkdir(parents=True, exist_ok=True)
    files = sorted(folder.glob(f"{_PREFIX}*{_SUFFIX}"))
    kept = files[0] if files else folder / f"{_PREFIX}{uuid.uuid4().hex[:8]}{_SUFFIX}"
    kept.touch()  # XLA reads an empty file as no results, and refuses one that is not there
    new = kept.with_suffix(_NEW)
    if new.exists() and _is_whole(new) and new.stat().st_size >= kept.stat().st_size:
        os.replace(new, kept)
    return kept


def _is_whole(path: Path) -> bool:
    """Whether a text proto ends where it should: XLA does not write it in one go."""
    text = path.read_text(encoding="utf-8", errors="replace")
    return text.rstrip().endswith("}") and text.count("{") == text.count("}")
