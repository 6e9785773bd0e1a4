"""Files of a finished cell that others read: what a benchmark's server takes, and lmms-eval's logs.

submissions/<cell>.json or .xlsx; lmms_eval/<cell>/<date>_samples_<task>.jsonl and <date>_results.json, with the keys of
lmms-eval 75571cf (2026-08; `loggers/evaluation_tracker.py`).
"""

import datetime
import hashlib
import json
from typing import Any

import ml_collections
import numpy as np

from expertflow_jax.harness.data import TaskData
from expertflow_jax.harness.rows import CellRow
from expertflow_jax.harness.workdir import plain_value
from expertflow_jax.studies.accuracy.comparison import Outcome, score_all
from expertflow_jax.studies.accuracy.groups import GroupScores
from expertflow_jax.tasks.base import Example, optional


def cell_files(
    config: ml_collections.ConfigDict,
    row: CellRow,
    data: TaskData,
    outcome: Outcome,
    groups: GroupScores | None,
    begun: float,
) -> dict[str, bytes]:
    """Contents by path in the workdir.

    Args:
      begun: when the study was, in seconds since 1970; it names lmms-eval's files.
    """
    files = {}
    if submission := optional(data.task, "submission")(data.examples, outcome.texts):
        ending, content = submission
        files[f"submissions/{row.cell_id}.{ending}"] = content
    date = datetime.datetime.fromtimestamp(begun).strftime("%Y%m%d_%H%M%S")
    start = f"lmms_eval/{row.cell_id}/{date}"
    samples = [_line(sample) for sample in _samples(data, outcome)]
    files[f"{start}_samples_{data.task.name}.jsonl"] = "\n".join([*samples, ""]).encode()
    files[f"{start}_results.json"] = json.dumps(_results(config, row, data, groups, date), indent=2).encode()
    return files


def _line(sample: dict[str, Any]) -> str:
    return json.dumps(sample, ensure_ascii=False, default=plain_value)


def _prompt(example: Example) -> str:
    """The prompt's text, without the image."""
    if example.text is not None:
        return example.text
    parts = [part for turn in example.messages for part in _parts(turn["content"])]
    return "".join(part.get("text", "") for part in parts)


def _parts(content: Any) -> list[dict[str, Any]]:
    return [{"text": content}] if isinstance(content, str) else list(content)


def _samples(data: TaskData, outcome: Outcome) -> list[dict[str, Any]]:
    """A sample per example; `accuracy` is the evaluator's score, that of the second one has `_second_name`."""
    second, name = _second_scores(data, outcome), _second_name(optional(data.task, "second_evaluator"))
    samples = []
    for number, (example, text) in enumerate(zip(data.examples, outcome.texts, strict=True)):
        document = {"id": example.id, "question": _prompt(example), "target": example.target, **example.groups}
        scores = {} if np.isnan(outcome.scores[number]) else {"accuracy": float(outcome.scores[number])}
        samples.append(
            {
                "doc_id": number,
                "target": str(example.target),
                "filtered_resps": text,
                "doc_hash": hashlib.sha256(_line(document).encode()).hexdigest(),
                **scores,
                **({} if second is None else {name: float(second[number])}),
                "input": _prompt(example),
                "id": example.id,
            }
        )
    return samples


def _second_name(evaluator: str | None) -> str:
    """The metric's name; lmms-eval's for a score by its rule."""
    return "exact_match" if evaluator and evaluator.startswith("lmms-eval") else "second_accuracy"


def _second_scores(data: TaskData, outcome: Outcome) -> np.ndarray | None:
    if optional(data.task, "second_evaluator") is None or not optional(data.task, "scored"):
        return None
    return score_all(data, outcome.texts, second=True)


def _results(
    config: ml_collections.ConfigDict, row: CellRow, data: TaskData, groups: GroupScores | None, date: str
) -> dict[str, Any]:
    name, count = data.task.name, len(data.examples)
    scores: dict[str, Any] = {"alias": name}
    if groups is not None:
        scores |= {f"{key},none": value for key, value in groups.scores.items()}
    if row.second_accuracy is not None:
        scores[f"{_second_name(row.second_evaluator)},none"] = row.second_accuracy
    coordinates = {key: getattr(row, key) for key in ("policy", "scheduler", "miss_policy", "cache_fraction", "seed")}
    limits = {key: config.get(key) for key in ("num_examples", "sample_seed")}
    evaluators = {"evaluator": row.evaluator, "second_evaluator": row.second_evaluator}
    return {
        "results": {name: scores},
        "configs": {name: {"task": name, "test_split": row.split, "metadata": evaluators}},
        "versions": {name: row.evaluator},
        "n-samples": {name: {"original": count, "effective": count}},
        "config": {"model": "expertflow_jax", "model_args": coordinates, "batch_size": row.batch_size, **limits},
        "date": date,
        "model_name": row.model,
    }
