"""From token forecasts to what the cache and the scheduler need: will this sequence, this step, use the
expert?

A step uses an expert if any of its tokens does: P = 1 - prod over tokens of (1 - p), taking tokens as
independent given the forecast. Summed as log(1 - p), so that thousands of small probabilities do not vanish.
Axes: B batch, T tokens, L MoE layers, E experts.
"""

import numpy as np


def _log_unused(probs: np.ndarray, lengths: np.ndarray | None) -> np.ndarray:
    values = np.clip(np.asarray(probs, np.float64), 0.0, 1.0)
    if lengths is not None:
        valid = np.arange(values.shape[1]) < np.asarray(lengths)[:, None]
        values = np.where(valid[:, :, None, None], values, 0.0)
    with np.errstate(divide="ignore"):
        return np.log1p(-values).sum(1)


def sequence_forecast(probs: np.ndarray, lengths: np.ndarray | None = None) -> np.ndarray:
    """P(a token of the sequence uses the expert): probs [B, T, L, E], lengths int [B] -> float32 [B, L, E].

    Tokens from `lengths[b]` on are padding; without lengths, none are.
    """
    return (-np.expm1(_log_unused(probs, lengths))).astype(np.float32)


def step_forecast(probs: np.ndarray, lengths: np.ndarray | None = None) -> np.ndarray:
    """P(the step uses the expert): probs [B, T, L, E], lengths int [B] -> float32 [L, E]."""
    return (-np.expm1(_log_unused(probs, lengths).sum(0))).astype(np.float32)


def combine_sequences(use: np.ndarray) -> np.ndarray:
    """P(any of the sequences uses the expert): [B, L, E] of `sequence_forecast` -> float32 [L, E]."""
    with np.errstate(divide="ignore"):
        logs = np.log1p(-np.clip(np.asarray(use, np.float64), 0.0, 1.0)).sum(0)
    return (-np.expm1(logs)).astype(np.float32)
