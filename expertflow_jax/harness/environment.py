"""What a study ran on: versions, device, processor, commit. Nothing of who ran it, nor where files lie."""

import functools
import hashlib
import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import jax
import numpy as np

from expertflow_jax import autotuning

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "scipy", "scikit-learn", "tokenizers")


def describe_environment(seed: int | None = None) -> dict[str, Any]:
    """A JSON-able description of this machine and installation.

    Args:
      seed: of the run, if it has one.
    """
    devices, flags = jax.devices(), os.environ.get("XLA_FLAGS", "")
    choices = autotuning.describe(flags)
    return {
        "packages": {name: _version(name) for name in ("expertflow-jax", *PACKAGES)},
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "processors": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "backend": jax.default_backend(),
        "devices": sorted({device.device_kind for device in devices}),
        "device_count": len(devices),
        "xla_flags": autotuning.other_flags(flags),
        "commit": _commit(),
        "seed": seed,
        **({} if choices is None else {"autotuning": choices}),
    }


@functools.cache
def code_digest() -> str:
    """Of this package's source files and of JAX's version: what computes."""
    root = Path(__file__).resolve().parents[1]
    digest = hashlib.sha256(f"{jax.__version__} {np.__version__}".encode())
    for path in sorted(root.rglob("*.py")):
        digest.update(path.relative_to(root).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _commit() -> str | None:
    """The checked-out commit, with "+" if tracked files differ from it; None outside a checkout."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    try:
        commit = _git(root, "rev-parse", "HEAD")
        changed = _git(root, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):
        return None
    return commit + ("+" if changed else "")


def _git(root: Path, *arguments: str) -> str:
    command = ["git", "-C", str(root), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=10).stdout.strip()
