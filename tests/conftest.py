"""One cache of compiled programs for the whole suite: its workers, its subprocesses, and the next run."""

import os
import signal
from pathlib import Path

import pytest

# Before jax is imported, and by environment so that subprocesses share it.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parents[1] / "build" / "compiled-tests"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")

# A suite that is started in the background inherits an ignored SIGINT; commands under test would not hear it either.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_configure(config: pytest.Config) -> None:
    """Compiling is most of the default suite's time, and takes half as long at the lowest level of optimisation. The
    slow tests, which compare answers bit for bit too, compile as users do. Workers and subprocesses inherit it."""
    if "not slow" in config.option.markexpr:
        os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")
