"""Compiled programs are kept on disk, so that a command or a service compiles them once per machine and JAX version.

JAX's persistent compilation cache. A program's key holds the program, its options, JAX's and XLA's version and what
the device is, so that it can never change a result: what does not fit is compiled anew.
"""

import hashlib
import os
import platform
import tempfile
from pathlib import Path

from expertflow_jax import autotuning, gpu_caps

VARIABLE = "EXPERTFLOW_COMPILATION_CACHE"
_JAX_VARIABLES = ("JAX_COMPILATION_CACHE_DIR", "JAX_ENABLE_COMPILATION_CACHE")


def default_folder() -> Path:
    """`~/.cache/expertflow_jax/xla`, or under XDG_CACHE_HOME."""
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(cache) / "expertflow_jax" / "xla"


def enable(folder: str | os.PathLike[str] | None = None) -> Path | None:
    """Turns the cache on, and keeps XLA's choices for a GPU beside it (`autotuning`).

    Args and result as `_enable`.
    """
    import jax  # takes seconds, and `--help` needs none of it

    place = _enable(folder)
    used = jax.config.jax_compilation_cache_dir
    if used and "://" not in used and gpu_caps.awaits_gpu(os.environ) and not gpu_caps.backend_runs():
        autotuning.keep(Path(used))
    return place


def _enable(folder: str | os.PathLike[str] | None = None) -> Path | None:
    """Turns the cache on and returns its folder; None where it stays as it is.

    It stays as it is where the user has set JAX's own cache, by its variables or by `jax.config`, and where the folder
    cannot be written: a run never fails for want of a cache.

    Args:
      folder: where programs go, "off" for nowhere; None: the variable EXPERTFLOW_COMPILATION_CACHE, else
        `default_folder()`. Each kind of processor has a folder of its own inside.
    """
    import jax
    from jax.experimental.compilation_cache import compilation_cache

    if jax.config.jax_compilation_cache_dir is not None or any(name in os.environ for name in _JAX_VARIABLES):
        return None
    wanted = str(folder or os.environ.get(VARIABLE) or default_folder())
    if wanted == "off":
        return None
    place = Path(wanted).expanduser() / _processor()
    try:
        place.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError:
        return None
    jax.config.update("jax_compilation_cache_dir", str(place))
    # A stage compiles in 0.1 to 1 s, and there are hundreds: JAX's own limit of 1 s would keep out most of them.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.05)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    compilation_cache.reset_cache()  # a program compiled before has settled that there is none
    return place


def _processor() -> str:
    """Name of the processor's kind: programs for the CPU use the instructions of the one that compiled them, and a home
    folder may be shared by machines of several kinds."""
    text = platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        text += next((line for line in lines if line.startswith(("flags", "Features"))), "")
    except OSError:
        text += platform.processor()
    return f"{platform.machine()}-{hashlib.blake2b(text.encode(), digest_size=4).hexdigest()}"
