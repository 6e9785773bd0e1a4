"""Calibration: a scale and a bias per MoE layer that turn the predictor's logits into honest probabilities.

Platt scaling, fitted by Newton's method on held-out traces. Needed because forecasts of tokens are
multiplied over a batch (`predictor.forecast`), where overconfidence compounds, and because a weighted loss
shifts the logits on purpose.
Axes: L MoE layers, E experts.
"""

from typing import Any

import numpy as np


def fit_scale_and_bias(logits: np.ndarray, used: np.ndarray, *, iterations: int = 30) -> tuple[float, float]:
    """Logits [n] and whether the expert was used, bool [n] -> (scale, bias) minimising the cross-entropy of
    sigmoid(scale * logit + bias). Returns (1, 0) if the data cannot decide (nothing used, or everything)."""
    x, y = np.asarray(logits, np.float64).ravel(), np.asarray(used, np.float64).ravel()
    if not 0 < y.sum() < y.size:
        return 1.0, 0.0

    def loss(w: np.ndarray) -> float:
        z = w[0] * x + w[1]
        return float(np.mean(np.logaddexp(0.0, z) - y * z))

    weights = np.array([1.0, 0.0])
    best = loss(weights)
    for _ in range(iterations):
        p = 1 / (1 + np.exp(-np.clip(weights[0] * x + weights[1], -60, 60)))
        gradient = np.array([np.mean((p - y) * x), np.mean(p - y)])
        s = p * (1 - p)
        cross = np.mean(s * x)
        hessian = np.array([[np.mean(s * x * x), cross], [cross, np.mean(s)]]) + 1e-9 * np.eye(2)
        step, size = np.linalg.solve(hessian, gradient), 1.0
        while size > 1e-4 and loss(weights - size * step) > best:
            size /= 2
        if size <= 1e-4:
            break
        weights = weights - size * step
        improved, best = best - loss(weights), loss(weights)
        if improved < 1e-9:
            break
    # A negative scale would turn the ranking round; the data then says that the logits carry nothing.
    return (float(weights[0]), float(weights[1])) if weights[0] > 0 else (1.0, 0.0)


def fit_layers(
    logits: np.ndarray, experts: np.ndarray, counted: np.ndarray, *, limit: int = 20_000, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Scale and bias of every layer.

    Args:
      logits: float [n, L, E] of n tokens.
      experts: int [..., L, K] of as many, -1 for none.
      counted: bool [..., L]; the rest is left out.
      limit: tokens used at most, drawn at random.

    Returns:
      scale float32 [L], bias float32 [L].
    """
    n, layers, num_experts = logits.shape
    experts, counted = experts.reshape(n, layers, -1), counted.reshape(n, layers)
    rows = np.random.default_rng(seed).permutation(n)[:limit]
    scale, bias = np.ones(layers, np.float32), np.zeros(layers, np.float32)
    for layer in range(layers):
        counts = rows[counted[rows, layer]]
        used = (experts[counts, layer][..., None] == np.arange(num_experts)).any(1)
        scale[layer], bias[layer] = fit_scale_and_bias(logits[counts, layer], used)
    return scale, bias


def expected_calibration_error(probs: np.ndarray, used: np.ndarray, *, bins: int = 15) -> float:
    """Mean |forecast - frequency| over `bins` equal-width bins, weighted by size; probs and used, any
    shape."""
    p, y = np.asarray(probs, np.float64).ravel(), np.asarray(used, np.float64).ravel()
    index = np.minimum((p * bins).astype(int), bins - 1)
    gap = np.bincount(index, p, bins) - np.bincount(index, y, bins)
    return float(np.abs(gap).sum() / max(p.size, 1))


def reliability(probs: np.ndarray, used: np.ndarray, *, bins: int = 10) -> list[dict[str, Any]]:
    """Forecast against frequency in equal-width bins; probs and used, any shape.

    Returns:
      One row per bin that is not empty: "low", "high", "count", "forecast" (mean probability), "frequency" (fraction
      really used).
    """
    p, y = np.asarray(probs, np.float64).ravel(), np.asarray(used, np.float64).ravel()
    index = np.minimum((p * bins).astype(int), bins - 1)
    count = np.bincount(index, minlength=bins)
    forecast, frequency = np.bincount(index, p, bins), np.bincount(index, y, bins)
    return [
        {
            "low": i / bins,
            "high": (i + 1) / bins,
            "count": int(count[i]),
            "forecast": float(forecast[i] / count[i]),
            "frequency": float(frequency[i] / count[i]),
        }
        for i in range(bins)
        if count[i]
    ]
