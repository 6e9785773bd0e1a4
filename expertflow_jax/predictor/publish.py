"""A predictor's measurements for people: Markdown tables, a plot of recall over the number of experts fetched, a card.

Axes: L MoE layers.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from expertflow_jax.files import whole_file

TITLES = {
    "predictor": "routing path predictor",
    "popularity": "expert popularity",
    "speculative": "next layer's router (speculative)",
    "persistence": "experts of the token before",
}
# Told apart by marker and dash as well as by colour.
STYLES = {
    "predictor": ("#0072b2", "o", "-"),
    "speculative": ("#d55e00", "s", "--"),
    "persistence": ("#009e73", "d", "-."),
    "popularity": ("#555555", "^", ":"),
}


def fetched(rows: Mapping[str, Any]) -> list[int]:
    """The numbers of experts at which `rows` has recall, ascending."""
    return sorted(int(name.split("@")[1]) for name in rows if name.startswith("recall@") and name != "recall@exact")


def plot_recall(metrics: Mapping[str, Any], path: Path) -> None:
    """Recall over experts fetched per layer, a column per split: of single tokens above, of the tokens after them, of a
    batch's steps below."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    phases = list(dict.fromkeys(phase for values in metrics.values() for phase in values["step"]))
    answers = any(values["token"]["following"] for values in metrics.values())
    shape = (1 + answers + len(phases), len(metrics))
    figure, axes = plt.subplots(*shape, figsize=(5 * shape[1], 4 * shape[0]), squeeze=False, sharey=True)
    for column, (split, values) in enumerate(metrics.items()):
        panels = [("of a token", values["token"]["all"])]
        if answers:
            panels.append(("of the next token", values["token"]["following"]))
        for phase in phases:
            about = f"of a {phase} step of {values['batch_size']} sequences"
            panels.append((about, values["step"].get(phase, {})))
        for axis, (what, methods) in zip(axes[:, column], panels, strict=True):
            counts: list[int] = []
            for method in (m for m in STYLES if m in methods):
                color, marker, dash = STYLES[method]
                counts = fetched(methods[method])
                recall = [methods[method][f"recall@{n}"]["mean"] for n in counts]
                axis.plot(counts, recall, color=color, marker=marker, linestyle=dash, label=TITLES[method])
            axis.set_xscale("log", base=2)
            axis.set_xticks(counts, [str(n) for n in counts])
            axis.set_ylim(0, 1.02)
            axis.set_title(f"{split.replace('_', ' ')}: experts {what}", fontsize=10)
            axis.set_xlabel("experts fetched per layer")
            axis.grid(alpha=0.3)
        for axis in axes[: 1 + answers, column]:
            axis.legend(loc="lower right", fontsize=8)
    for row in axes:
        row[0].set_ylabel("recall, all layers")
    figure.tight_layout()
    with whole_file(path) as file:
        figure.savefig(file, format="png", dpi=130)
    plt.close(figure)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def token_table(methods: Mapping[str, Any], count: int, per_layer: bool) -> str:
    """Recall, precision and F1 at `count` experts fetched; a row per layer and method, or per method."""
    names = [f"{kind}@{count}" for kind in ("recall", "precision", "f1")]
    rows = []
    layers = len(next(iter(methods.values()))[names[0]]["per_layer"])
    for layer in range(layers) if per_layer else ():
        for method, values in methods.items():
            rows.append([str(layer), TITLES[method], *(f"{values[n]['per_layer'][layer]:.3f}" for n in names)])
    for method, values in methods.items():
        rows.append(["all", TITLES[method], *(f"{values[n]['mean']:.3f}" for n in names)])
    return _table(["layer", "method", *names], rows)


def recall_table(methods: Mapping[str, Any]) -> str:
    """Recall over all layers at every number of experts fetched, a row per method."""
    titled = {method: values for method, values in methods.items() if method in TITLES}
    counts = fetched(next(iter(titled.values())))
    rows = [[TITLES[m], *(f"{v[f'recall@{n}']['mean']:.3f}" for n in counts)] for m, v in titled.items()]
    return _table(["method", *(f"recall@{n}" for n in counts)], rows)


def reliability_table(bins: Sequence[Mapping[str, float]]) -> str:
    """Forecast probability of a step's expert against how often it was used."""
    rows = [
        [f"{b['low']:.1f} to {b['high']:.1f}", f"{b['forecast']:.3f}", f"{b['frequency']:.3f}", str(b["count"])]
        for b in bins
    ]
    return _table(["probability", "mean forecast", "really used", "forecasts"], rows)


def markdown(metrics: Mapping[str, Any]) -> str:
    """The whole report."""
    parts = [
        "Every method fetches the same number of experts per layer. The next layer's router sees one layer ahead and "
        "nothing at layer 0, where it counts as popularity does; predictor and popularity know all layers before the "
        "first one runs. Baselines are fitted on the training traces.\n",
        "![recall](recall.png)\n",
    ]
    for split, values in metrics.items():
        tokens, size = values["token"], values["batch_size"]
        count = fetched(tokens["all"]["predictor"])[0]
        parts.append(f"## {split.replace('_', ' ')}: {values['sequences']} sequences, {values['tokens']} tokens\n")
        parts.append("Experts of a token, all layers:\n\n" + recall_table(tokens["all"]))
        parts.append("By layer:\n\n" + token_table(tokens["all"], count, True))
        if tokens["following"]:
            parts.append("\n\n".join(["Decoded tokens alone:", token_table(tokens["decode"], count, False)]))
            parts.append(_following_table(tokens["following"]))
        parts.append(_step_tables(values))
        for phase, found in values["reliability"].items():
            about = f"of {phase} steps, {size} sequences: mean error {found['calibration_error']:.3f}"
            parts.append(f"Calibration {about}\n\n" + reliability_table(found["bins"]))
    return "\n".join(parts)


def _following_table(methods: Mapping[str, Any]) -> str:
    return "Decoded tokens, forecast one token earlier:\n\n" + recall_table(methods)


def _step_tables(values: Mapping[str, Any]) -> str:
    """Recall of what whole steps use, a table for prompts and one for decoding."""
    parts = []
    for phase, rows in values["step"].items():
        used = f"{np.mean(rows['distinct_experts']):.1f} experts per layer used"
        about = f"Experts of {phase} steps of {values['batch_size']} sequences ({used}):"
        parts.append(f"{about}\n\n{recall_table(rows)}")
    return "\n".join(parts)


def card(metrics: Mapping[str, Any], facts: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    """README.md of an exported predictor.

    Args:
      metrics: of `report.evaluate`.
      facts: "model", "model_fingerprint", "command", "seed", "parameters", "bytes".
      config: what it was trained with, JSON-able.
    """
    held_out = metrics["held_out"]
    return f"""# A routing path predictor

Forecasts, from a token's input embedding and those before it, which experts the token, and the one after it, will
use at every MoE layer of `{facts["model"]}` (fingerprint `{facts["model_fingerprint"]}`); of any other model it is
refused. The idea is ExpertFlow's (2410.17954). {facts["parameters"]:,} parameters, {facts["bytes"]:,} bytes.

Rebuild: `{facts["command"]}` (seed {facts["seed"]})

Held-out traces ({held_out["sequences"]} sequences), experts of a token, all layers:

{recall_table(held_out["token"]["all"])}
{_following_table(held_out["token"]["following"]) if held_out["token"]["following"] else ""}
{_step_tables(held_out)}
Config:

```json
{json.dumps(config, indent=2)}
```
"""
