"""Loads a checkpoint and prints by how many bytes the process grew at its peak: `load_and_measure.py DIR [BUDGET]`."""

import sys
from pathlib import Path

import jax
import numpy as np

from expertflow_jax import OffloadedModel


def resident_bytes(what: str) -> int:
    """VmRSS or VmHWM of this process; `getrusage` would also count the one that started it."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(what))
    return int(line.split()[1]) * 1024


directory, budget = sys.argv[1], (sys.argv[2:] or [None])[0]
jax.block_until_ready(jax.jit(lambda x: x + 1)(np.zeros(8)))  # the compiler is there
before = resident_bytes("VmRSS")
with OffloadedModel.from_pretrained(directory, policy="on_demand", cache_fraction=0.001, host_memory_budget=budget):
    print(resident_bytes("VmHWM") - before)
