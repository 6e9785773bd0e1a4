"""Rows of a study that nobody ran, plausible enough to look at its report:

python tests/studies/accuracy/made_up_rows.py DIR
"""

import itertools
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from expertflow_jax.harness.rows import CellRow, cell_id

EXPERTS, EXPERT_BYTES, FIXED_BYTES, PREDICTOR_BYTES = 384, 36_864, 6_000_000, 900_000
FRACTIONS = (0.125, 0.25, 0.5, 0.75)
SKILL = {"on_demand": 1.0, "cache_moe": 0.93, "expertflow": 0.55, "oracle": 0.3}
ENVIRONMENT = {"packages": {"jax": "0.11.2", "numpy": "2.1.0"}, "python": "3.12.4", "devices": ["cpu"]}
CONFIG = {"batch_size": 8, "num_examples": 128, "seeds": [0], "grids": {"lossy": {"policies": ["expertflow"]}}}


def row(**changes: Any) -> CellRow:
    """An all-resident cell with `changes`; its id follows from them."""
    values: dict[str, Any] = {
        "model": "digit_scenes_moe",
        "task": "vqa_v2",
        "split": "val",
        "policy": "resident",
        "forecast": "none",
        "scheduler": "fifo",
        "miss_policy": "wait",
        "miss_options": None,
        "expert_dtype": "float32",
        "lossless": True,
        "size": "1",
        "cache_fraction": 1.0,
        "slots": EXPERTS,
        "memory_budget_bytes": FIXED_BYTES + EXPERTS * EXPERT_BYTES,
        "peak_device_bytes": FIXED_BYTES + EXPERTS * EXPERT_BYTES - 1000,
        "host_bytes": EXPERTS * EXPERT_BYTES,
        "expert_bytes": EXPERT_BYTES,
        "batch_size": 8,
        "batches_per_block": 1,
        "seed": 0,
        "num_examples": 128,
        "units": 128,
        "evaluator": "an evaluator (2020-01)",
        "second_evaluator": "another (2021-01)",
        "second_accuracy": 0.76,
        "second_reference_accuracy": 0.76,
        "accuracy": 0.75,
        "accuracy_ci_low": 0.67,
        "accuracy_ci_high": 0.82,
        "reference_accuracy": 0.75,
        "accuracy_delta": 0.0,
        "delta_ci_low": 0.0,
        "delta_ci_high": 0.0,
        "flips": 0,
        "p_value": 1.0,
        "equivalence_p": 0.0,
        "equivalence_margin": 0.01,
        "mcnemar_p": 1.0,
        "logit_kl": 0.0,
        "margin_delta": 0.0,
        "dropped_rate": 0.0,
        "deferred_rate": 0.0,
        "exchanged_rate": 0.0,
        "discarded_mass": 0.0,
        "bit_identical": True,
        "tokens": 4000,
        "tokens_per_second": 2000.0,
        "wall_seconds": 2.0,
        "compute_seconds": 2.0,
        "stall_seconds": 0.0,
        "predictor_seconds": 0.0,
        "predictor_tokens_saved": 0,
        "bytes_transferred": 0,
        "disk_bytes": 0,
        "prefetches": 0,
        "hits": 20_000,
        "late": 0,
        "misses": 0,
        "corrections": 0,
        "hit_rate": 1.0,
        "experts_per_batch": 31.0,
        "first_token_seconds": 0.05,
        "perplexity": None,
        "link": "emulated(0.25,2)",
        "clock": "virtual",
        "device": "cpu",
    }
    values |= changes
    key = ("task", "policy", "scheduler", "miss_policy", "cache_fraction", "seed")
    return CellRow(**({"cell_id": cell_id({name: values[name] for name in key})} | values))


def cached(policy: str, fraction: float, scheduler: str = "fifo", miss_policy: str = "wait", **changes: Any) -> CellRow:
    """A cell with fewer slots than experts: hits by skill and size, losses by misses."""
    crowd = {"fifo": 31.0, "random": 31.3, "kmeans": 26.5, "greedy": 24.8}[scheduler]
    missed = SKILL[policy] * (1 - fraction) ** 1.5 * 0.8 * crowd / 31
    lossless = miss_policy == "wait"
    stall = 8 * missed if lossless else 0.2
    forecast = 0.15 if policy == "expertflow" else 0.0
    wall = 2.0 + stall + forecast
    slots = int(fraction * EXPERTS)
    lost = 0.0 if lossless else missed * (0.5 if miss_policy == "drop" else 0.2)
    noise = 0.02 + 0.04 * lost
    predictor = PREDICTOR_BYTES if policy == "expertflow" else 0
    values: dict[str, Any] = {
        "policy": policy,
        "forecast": {"expertflow": "predictor", "oracle": "truth"}.get(policy, "none"),
        "scheduler": scheduler,
        "miss_policy": miss_policy,
        "lossless": lossless,
        "size": f"{fraction:g}",
        "cache_fraction": slots / EXPERTS,
        "slots": slots,
        "memory_budget_bytes": FIXED_BYTES + slots * EXPERT_BYTES + predictor,
        "wall_seconds": wall,
        "stall_seconds": stall,
        "predictor_seconds": forecast,
        "tokens_per_second": 4000 / wall,
        "bytes_transferred": int(missed * 25_000) * EXPERT_BYTES,
        "hits": int(20_000 * (1 - missed)),
        "misses": int(20_000 * missed),
        "hit_rate": 1 - missed,
        "experts_per_batch": crowd,
    }
    if lost:
        values |= {
            "accuracy": 0.75 - lost,
            "accuracy_ci_low": 0.67 - lost,
            "accuracy_ci_high": 0.82 - lost,
            "accuracy_delta": -lost,
            "delta_ci_low": -lost - noise,
            "delta_ci_high": min(1.0, noise - lost),
            "flips": int(200 * lost),
            "p_value": float(np.exp(-90 * lost)),
            "equivalence_p": 1.0,
            "mcnemar_p": float(np.exp(-90 * lost)),
            "logit_kl": 3 * lost,
            "bit_identical": False,
        }
    return row(**(values | changes))


def made_up_study(tasks=("mmbench", "vqa_v2"), fractions=FRACTIONS) -> list[CellRow]:
    """All cells of a study shaped like the quickstart's."""
    rows = []
    for task in tasks:
        shift = {"task": task, "units": 34 if task == "mmbench" else 128}
        rows += [row(**shift, scheduler=s, experts_per_batch=e) for s, e in (("fifo", 31.0), ("random", 31.3))]
        rows += [cached(policy, f, **shift) for policy, f in itertools.product(SKILL, fractions)]
        rows += [cached("expertflow", f, s, **shift) for f in fractions for s in ("random", "kmeans", "greedy")]
        rows += [
            cached(policy, f, s, miss, **shift)
            for policy in ("cache_moe", "expertflow")
            for f in fractions
            for s in ("fifo", "greedy")
            for miss in ("drop", "substitute")
        ]
    return rows


def write_study(workdir: Path, rows: list[CellRow]) -> Path:
    """The files that a report reads."""
    workdir.mkdir(parents=True, exist_ok=True)
    (workdir / "results.jsonl").write_text("".join(json.dumps(r.to_json()) + "\n" for r in rows))
    (workdir / "config.json").write_text(json.dumps(CONFIG))
    (workdir / "environment.json").write_text(json.dumps(ENVIRONMENT))
    return workdir


if __name__ == "__main__":
    from rich.console import Console

    from expertflow_jax.studies.accuracy.report import render_table, write_report

    Console(width=118).print(render_table(made_up_study()))
    print(*write_report(write_study(Path(sys.argv[1]), made_up_study()), command="python -m eval.study"))
