"""From token forecasts to what the cache and the scheduler need: will this sequence, this step, use the
expert?

A step uses an expert if any of its tokens does: P = 1 - prod over tokens of (1 - p), taking tokens as
independent given the forecast. Summed as log(1 - p), so that thousands of small probabilities do not vanish.
Axes: B batch, T tokens, L MoE layers, E experts.
"""

import numpy as np
from jaxtyping import Float, Int


def step_forecast(
    probs: Float[np.ndarray, "B T L E"], lengths: Int[np.ndarray, "B"] | None = None
) -> Float[np.ndarray, "L E"]:
    """P(the step uses the expert) as float32; tokens from `lengths[b]` on are padding, without lengths none are.

    `Predictor.forecast` and `combine_sequences` give the same without bringing every token's forecast to the host.
    """
    values = np.clip(np.asarray(probs, np.float64), 0.0, 1.0)
    if lengths is not None:
        valid = np.arange(values.shape[1]) < np.asarray(lengths)[:, None]
        values = np.where(valid[:, :, None, None], values, 0.0)
    with np.errstate(divide="ignore"):
        unused = np.log1p(-values).sum(1)  # [B, L, E]
    return (-np.expm1(unused.sum(0))).astype(np.float32)


def combine_sequences(use: Float[np.ndarray, "B L E"]) -> Float[np.ndarray, "L E"]:
    """P(any of the sequences uses the expert) as float32, of each one's (`Predictor.forecast`)."""
    with np.errstate(divide="ignore"):
        logs = np.log1p(-np.clip(np.asarray(use, np.float64), 0.0, 1.0)).sum(0)
    return (-np.expm1(logs)).astype(np.float32)
