"""Measures a predictor against popularity and next-router speculation, and says so in a table and a JSON
file.

Every method fetches the same number of experts. Per token: top K, 2K, 4K, ... Per step of a batch: fixed
fractions of the experts, and as many as the step uses. Baselines are fitted on the training traces only.
Axes: N sequences, T tokens, L MoE layers, E experts, K top-k.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from expertflow_jax.files import make_folder, write_json
from expertflow_jax.predictor.baselines import Popularity, Speculation
from expertflow_jax.predictor.metrics import Scorer, TokenMeter, step_metrics, step_reliability, used_mask
from expertflow_jax.predictor.runtime import Predictor
from expertflow_jax.predictor.trace_forecasts import predict
from expertflow_jax.routing.trace import RoutingTrace
from expertflow_jax.routing.trace_set import TraceSet

BLOCK = 256  # sequences whose scores are in memory at once


def evaluate(
    predictor: Predictor,
    train: RoutingTrace,
    splits: Mapping[str, TraceSet],
    *,
    batch_size: int = 8,
    seed: int = 0,
) -> dict[str, Any]:
    """Metrics of predictor and baselines on every split.

    Args:
      train: the training traces, for the baselines.
      splits: name ("held_out", "out_of_distribution", ...) -> traces not trained on.
      batch_size: sequences per batch in the step metrics.

    Returns:
      split -> {"sequences", "tokens", "batch_size", "token": {"all" | "decode" | "following": `TokenMeter.result`},
      "step": `step_metrics`, "reliability": `step_reliability`}. `speculative` is there if the traces recorded it;
      where it sees nothing, at the first layer, it forecasts as popularity does. "following" is of decoded tokens,
      forecast one token earlier; `persistence` then expects the experts of the token before.
    """
    popular = Popularity.fit(train)
    guess = None if train.speculative is None else Speculation.fit(train)
    out: dict[str, Any] = {}
    for name, traces in splits.items():
        trace = traces.trace
        counts = fetch_counts(trace.top_k, trace.num_experts)
        meters = {phase: TokenMeter(trace.num_experts, trace.top_k, counts) for phase in ("all", "decode")}
        following = TokenMeter(trace.num_experts, trace.top_k, counts)
        # float16 keeps a whole split's forecasts in memory; its rounding is far below what ranks differ by.
        probs = np.zeros((*trace.experts.shape[:3], trace.num_experts), np.float16)
        for begin in range(0, len(traces), BLOCK):
            rows = slice(begin, begin + BLOCK)
            part = traces.select(rows)
            scores, next_scores = predict(predictor, part)
            probs[rows] = scores
            _add_following(following, part.trace, next_scores, popular)
            for phase, meter in meters.items():
                mask = part.trace.token_mask(phase)
                experts = part.trace.experts[mask]
                meter.add("predictor", scores[mask], experts)
                meter.add("popularity", popular.scores(experts), experts)
                if guess is not None and part.trace.speculative is not None:
                    meter.add("speculative", guess.scores(part.trace.speculative[mask]), experts)
        scorers = _scorers(trace, probs, popular, guess)
        out[name] = {
            "sequences": len(trace),
            "tokens": trace.num_tokens,
            "batch_size": batch_size,
            "token": {phase: meter.result() for phase, meter in (meters | {"following": following}).items()},
            "step": step_metrics(trace, scorers, batch_size=batch_size, seed=seed),
            "reliability": step_reliability(trace, probs, batch_size=batch_size, seed=seed),
        }
    return out


def _add_following(meter: TokenMeter, trace: RoutingTrace, scores: np.ndarray, popular: Popularity) -> None:
    """Adds forecasts [N, T, L, E] of the tokens after each, where those are decoded."""
    decoded = trace.token_mask("decode")[:, 1:]
    if not decoded.any():
        return
    experts = trace.experts[:, 1:][decoded]
    meter.add("predictor", scores[:, :-1][decoded], experts)
    meter.add("persistence", used_mask(trace.experts[:, :-1][decoded], trace.num_experts).astype(np.float32), experts)
    meter.add("popularity", popular.scores(experts), experts)


def fetch_counts(top_k: int, num_experts: int) -> list[int]:
    """How many experts per layer the methods fetch in the comparison: K, 2K, 4K, ... up to half of them."""
    counts = [top_k]
    while 2 * counts[-1] <= max(num_experts // 2, top_k):
        counts.append(2 * counts[-1])
    return counts


def _scorers(
    trace: RoutingTrace, probs: np.ndarray, popular: Popularity, guess: Speculation | None
) -> dict[str, Scorer]:
    scorers: dict[str, Scorer] = {
        "predictor": lambda mask: probs[mask],
        "popularity": lambda mask: popular.scores(trace.experts[mask]),
    }
    ranked = trace.speculative
    if guess is not None and ranked is not None:
        scorers["speculative"] = lambda mask: guess.scores(ranked[mask])
    return scorers


def summarise(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Means over layers only: split -> phase -> method -> {"recall@n": ...}; small enough to travel with a
    predictor."""
    out: dict[str, Any] = {}
    for split, values in metrics.items():
        phases = {f"token/{phase}": methods for phase, methods in values["token"].items()}
        phases |= {f"step/{phase}": methods for phase, methods in values["step"].items()}
        out[split] = {
            phase: {
                method: {name: round(row["mean"] if isinstance(row, dict) else row, 5) for name, row in rows.items()}
                for method, rows in methods.items()
                if isinstance(rows, dict)
            }
            for phase, methods in phases.items()
        }
    return out


def tables(metrics: Mapping[str, Any]) -> list[Table]:
    """One table per split: methods by layer, per token; and one of a batch's steps."""
    out = []
    for split, values in metrics.items():
        methods = values["token"]["all"]
        columns = [name for name in methods["predictor"] if "@" in name]
        budgets = sorted({int(name.split("@")[1]) for name in columns})[:2]
        shown = [f"{kind}@{n}" for n in budgets for kind in ("recall", "precision", "f1")]
        table = Table(title=f"{split}: experts of a token ({values['sequences']} sequences)")
        table.add_column("layer", justify="right")
        table.add_column("method")
        for name in shown:
            table.add_column(name, justify="right")
        layers = len(methods["predictor"][shown[0]]["per_layer"])
        for layer in range(layers):
            for method, rows in methods.items():
                cells = [f"{rows[name]['per_layer'][layer]:.3f}" for name in shown]
                table.add_row(str(layer), method, *cells, end_section=method == list(methods)[-1])
        for method, rows in methods.items():
            table.add_row("all", method, *[f"{rows[name]['mean']:.3f}" for name in shown], style="bold")
        out.append(table)
        steps = Table(title=f"{split}: experts that one step of a batch of {values['batch_size']} uses, recall")
        for column in ("step", "distinct", "method"):
            steps.add_column(column)
        names = list(values["step"]["prompt"]["predictor"])
        for name in names:
            steps.add_column(name.removeprefix("recall"), justify="right")
        for phase, rows in values["step"].items():
            distinct = f"{np.mean(rows['distinct_experts']):.1f}"
            for method in (m for m in rows if m != "distinct_experts"):
                steps.add_row(phase, distinct, method, *[f"{rows[method][n]['mean']:.3f}" for n in names])
        out.append(steps)
    return out


def write_report(metrics: Mapping[str, Any], path: str | Path, console: Console | None = None) -> None:
    """Writes `metrics` as JSON to `path`, all or nothing, and prints the tables."""
    make_folder(Path(path).parent)
    write_json(path, metrics, indent=1)
    for table in tables(metrics):
        (console or Console()).print(table)
