"""Work of a MoE layer whose result counts one MoE layer later (see `offload.misses.defer`).

Axes: B sequences, T new tokens, N = B * T, E experts, K top-k, D model width.
"""

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np
from jaxtyping import Float32, Int32

from expertflow_jax.inference.rows import ExpertRows


@dataclasses.dataclass
class Late:
    """What a member's experts still have to do for a MoE layer that it has left.

    Attributes:
      y: [B, T, D], what those experts read.
      rows: of the experts that were deferred.
      weights: of all choices, [B, T, K].
      out: [N * K + 1, D], zeros but for what has run.
    """

    moe_layer: int
    y: jax.Array
    rows: ExpertRows
    weights: Float32[np.ndarray, "B T K"]
    out: jax.Array


def late_experts(members: Sequence[Late]) -> Int32[np.ndarray, " n"]:
    """Experts that any of the members still waits for, ascending."""
    return np.flatnonzero(np.any([late.rows.counts for late in members], axis=0)).astype(np.int32)
