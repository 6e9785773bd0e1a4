"""How good is a forecast? Recall, precision and F1 of the experts that it would fetch, per layer.

Per token: fetch the n highest-scored experts of each layer. Per step: fetch n experts per layer for a
whole batch, ranked by P(step uses the expert); what the cache sees, and what a budget limits. Methods are
always compared at the same n. Axes: n tokens, N sequences, B batch, L MoE layers, E experts, K top-k.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from expertflow_jax.predictor.calibration import expected_calibration_error, reliability
from expertflow_jax.predictor.forecast import step_forecast
from expertflow_jax.routing.trace import RoutingTrace

Scorer = Callable[[np.ndarray], np.ndarray]  # bool [N, T] token mask -> probabilities [tokens, L, E]


def top_mask(scores: np.ndarray, count: int) -> np.ndarray:
    """bool [..., E]: exactly the `count` highest scores of each row (ties: the lower index)."""
    count = min(count, scores.shape[-1])
    order = np.argsort(-scores, axis=-1, kind="stable")[..., :count]
    mask = np.zeros(scores.shape, bool)
    np.put_along_axis(mask, order, True, axis=-1)
    return mask


def used_mask(experts: np.ndarray, num_experts: int) -> np.ndarray:
    """int [..., K] with -1 for none -> bool [..., E]."""
    padded = np.zeros((*experts.shape[:-1], num_experts + 1), bool)
    np.put_along_axis(padded, np.where(experts >= 0, experts, num_experts), True, axis=-1)
    return padded[..., :-1]


def token_counts(scores: np.ndarray, used: np.ndarray, budgets: Sequence[int]) -> np.ndarray:
    """float64 [budgets, 3, L]: hits, fetched and used, summed over tokens; scores, used [n, L, E]."""
    routed = used.any(-1)
    order = np.argsort(-scores, axis=-1, kind="stable")[..., : max(budgets)]
    hit = np.take_along_axis(used, order, axis=-1)
    out = np.zeros((len(budgets), 3, used.shape[1]))
    for i, n in enumerate(budgets):
        fetched = min(n, used.shape[-1]) * routed.sum(0)
        out[i] = hit[..., :n].sum((0, 2)), fetched, used.sum((0, 2))
    return out


def rates(counts: np.ndarray) -> dict[str, np.ndarray]:
    """Counts [3, ...] (hits, fetched, used) -> recall, precision and f1, each [...]."""
    hits, fetched, used = counts
    recall = hits / np.maximum(used, 1)
    precision = hits / np.maximum(fetched, 1)
    return {
        "recall": recall,
        "precision": precision,
        "f1": 2 * recall * precision / np.maximum(recall + precision, 1e-12),
    }


class TokenMeter:
    """Accumulates token metrics of several methods over blocks of tokens, so that no method's scores for
    the whole trace are in memory at once."""

    def __init__(self, num_experts: int, top_k: int, budgets: Sequence[int] = ()):
        self.num_experts = num_experts
        self.budgets = tuple(budgets) or (top_k, min(2 * top_k, num_experts), min(4 * top_k, num_experts))
        self._counts: dict[str, np.ndarray] = {}
        self._errors: dict[str, list[float]] = {}

    def add(self, method: str, scores: np.ndarray, experts: np.ndarray) -> None:
        """scores float [n, L, E], experts int [n, L, K]."""
        used = used_mask(experts, self.num_experts)
        counts = token_counts(scores, used, self.budgets)
        self._counts[method] = self._counts.get(method, 0) + counts
        self._errors.setdefault(method, []).append(expected_calibration_error(scores, used))

    def result(self) -> dict[str, Any]:
        """method -> {"recall@n", "precision@n", "f1@n": {"per_layer": [L], "mean": over all layers},
        "calibration_error"}."""
        out: dict[str, Any] = {}
        for method, counts in self._counts.items():
            rows: dict[str, Any] = {}
            for i, n in enumerate(self.budgets):
                total = rates(counts[i].sum(-1))
                for name, values in rates(counts[i]).items():
                    rows[f"{name}@{n}"] = {"per_layer": values.tolist(), "mean": float(total[name])}
            rows["calibration_error"] = float(np.mean(self._errors[method]))
            out[method] = rows
        return out


def log_unused(probs: np.ndarray) -> np.ndarray:
    """float64 log(1 - p), finite for p = 1 (as if p = 1 - 1e-12)."""
    return np.log1p(-np.clip(np.asarray(probs, np.float64), 0.0, 1.0 - 1e-12))


def step_units(trace: RoutingTrace) -> list[tuple[str, np.ndarray]]:
    """What runs together: ("prompt", bool [N, T] of all prompt tokens) and ("decode", ...) once per decode
    step."""
    position = np.arange(trace.experts.shape[1])
    units = [("prompt", trace.token_mask("prompt"))]
    decode = trace.token_mask("decode")
    for step in range(int((trace.lengths - trace.prompt_lengths).max(initial=0))):
        units.append(("decode", decode & (position == (trace.prompt_lengths + step)[:, None])))
    return units


def _by_sequence(values: np.ndarray, mask: np.ndarray, combine: np.ufunc) -> tuple[np.ndarray, np.ndarray]:
    """Reduces per-token values [tokens, ...] of bool mask [N, T] to [sequences, ...]; also which
    sequences."""
    sequences, starts = np.unique(np.nonzero(mask)[0], return_index=True)
    return combine.reduceat(values, starts, axis=0), sequences


def step_metrics(
    trace: RoutingTrace,
    scorers: Mapping[str, Scorer],
    *,
    batch_size: int,
    fractions: Sequence[float] = (0.125, 0.25, 0.5),
    seed: int = 0,
) -> dict[str, Any]:
    """Recall of the experts that a batch's step uses, at equal numbers fetched per layer.

    Args:
      trace: N sequences; random batches of `batch_size` are formed, each sequence in one.
      scorers: method -> `Scorer`.
      fractions: fetched experts per layer as fractions of E; "exact" fetches as many as the step uses.

    Returns:
      {"prompt" | "decode": {method: {"recall@<n>", "recall@exact": {"per_layer": [L], "mean": float}},
      "distinct_experts": [L] mean per step}}.
    """
    layers, experts = trace.num_layers, trace.num_experts
    batch_of = np.random.default_rng(seed).permutation(len(trace)) // batch_size
    batches = int(batch_of.max(initial=0)) + 1
    budgets = [max(1, round(f * experts)) for f in fractions]
    sums: dict[str, dict[str, np.ndarray]] = {}
    distinct: dict[str, list[np.ndarray]] = {}
    for phase, mask in step_units(trace):
        if not mask.any():
            continue
        used = np.zeros((batches, layers, experts), bool)
        part, sequences = _by_sequence(used_mask(trace.experts[mask], experts), mask, np.logical_or)
        np.logical_or.at(used, batch_of[sequences], part)
        present = np.bincount(batch_of[sequences], minlength=batches) > 0
        distinct.setdefault(phase, []).append(used[present].sum(-1))
        for method, score in scorers.items():
            logs = np.zeros((batches, layers, experts))
            part, _ = _by_sequence(log_unused(score(mask)), mask, np.add)
            np.add.at(logs, batch_of[sequences], part)
            order = np.argsort(logs, axis=-1, kind="stable")
            hit = np.cumsum(np.take_along_axis(used, order, axis=-1), axis=-1)[present]
            total = used[present].sum(-1)
            hit_counts = [hit[..., n - 1].sum(0) for n in budgets]
            exact = np.take_along_axis(hit, np.maximum(total - 1, 0)[..., None], axis=-1)[..., 0]
            hit_counts += [exact.sum(0), total.sum(0)]
            previous = sums.setdefault(phase, {}).get(method, 0)
            sums[phase][method] = previous + np.array(hit_counts, np.float64)
    out: dict[str, Any] = {}
    names = [f"recall@{n}" for n in budgets] + ["recall@exact"]
    for phase, methods in sums.items():
        out[phase] = {"distinct_experts": np.concatenate(distinct[phase]).mean(0).tolist()}
        for method, counts in methods.items():
            out[phase][method] = {
                name: {
                    "per_layer": (counts[i] / np.maximum(counts[-1], 1)).tolist(),
                    "mean": float(counts[i].sum() / max(counts[-1].sum(), 1)),
                }
                for i, name in enumerate(names)
            }
    return out


def step_reliability(trace: RoutingTrace, probs: np.ndarray, *, batch_size: int, seed: int = 0) -> dict[str, Any]:
    """Is `step_forecast` of a batch calibrated? It takes tokens as independent, which they are not quite.

    Args:
      trace: N sequences; random batches of `batch_size` are formed, each sequence in one.
      probs: float [N, T, L, E], calibrated probabilities of the tokens.

    Returns:
      {"prompt" | "decode": {"calibration_error": float, "bins": see `calibration.reliability`}}.
    """
    order = np.random.default_rng(seed).permutation(len(trace))
    pairs_of_phase: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}
    for phase, mask in step_units(trace):
        for begin in range(0, len(trace), batch_size):
            rows = order[begin : begin + batch_size]
            inside = mask[rows]
            if not inside.any():
                continue
            forecast = step_forecast(np.where(inside[..., None, None], probs[rows], 0.0))
            used = used_mask(trace.experts[rows][inside], trace.num_experts).any(0)
            pairs_of_phase.setdefault(phase, []).append((forecast, used))
    out: dict[str, Any] = {}
    for phase, pairs in pairs_of_phase.items():
        forecasts, truths = (np.stack(values) for values in zip(*pairs, strict=True))
        error = expected_calibration_error(forecasts, truths, bins=10)
        out[phase] = {"calibration_error": error, "bins": reliability(forecasts, truths)}
    return out
