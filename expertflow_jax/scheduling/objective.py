"""What a schedule costs: distinct experts per batch, expected from a forecast or counted from what ran.

The quantity that ExpertFlow's token scheduler lowers (2410.17954): every distinct expert of a batch has to be on the
device once, however many of the batch's tokens use it.
Axes: W waiting sequences (the window), B sequences of a batch, L MoE layers, E experts.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Int

Batch = Int[np.ndarray, " B"] | Sequence[int]


def expected_distinct(signatures: Float[np.ndarray, "W L E"], batch: Batch) -> float:
    """Expected number of distinct experts that a batch activates, summed over layers.

    Sequences are taken as independent given their forecasts: sum over layers and experts of 1 - prod(1 - p).

    Args:
      signatures: probability that a sequence uses an expert.
      batch: indices into the window.
    """
    absent_LxE = np.prod(1.0 - np.asarray(signatures)[np.asarray(batch, np.int64)].astype(np.float64), axis=0)
    return float(np.sum(1.0 - absent_LxE))


def schedule_cost(signatures: Float[np.ndarray, "W L E"], batches: Sequence[Batch]) -> float:
    """Mean of `expected_distinct` over the batches of a schedule; 0 for an empty one."""
    if not batches:
        return 0.0
    return sum(expected_distinct(signatures, batch) for batch in batches) / len(batches)


def realised_distinct(used: Bool[np.ndarray, "W L E"], batch: Batch) -> int:
    """Distinct experts that a batch really activated, summed over layers.

    Args:
      used: whether a sequence used an expert.
      batch: indices into the window.
    """
    return int(np.asarray(used, bool)[np.asarray(batch, np.int64)].any(axis=0).sum())
