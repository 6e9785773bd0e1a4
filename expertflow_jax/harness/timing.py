"""How long a call on the device takes."""

import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

WARM_UPS = 3


def median_seconds(call: Callable[[], Any], repeats: int) -> float:
    """Median wall time of `call`, which returns what must be waited for; calls that warm up are not counted."""
    for _ in range(WARM_UPS):
        jax.block_until_ready(call())
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(call())
        seconds.append(time.perf_counter() - start)
    return float(np.median(seconds))
