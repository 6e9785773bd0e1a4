"""From what a cell did to its row: scores, and paired comparison with the all-resident runs. (DESIGN section 10.)

Axes: W examples, U statistical units.
"""

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ml_collections
import numpy as np
from jaxtyping import Float

from expertflow_jax.errors import InputError, brief
from expertflow_jax.harness.data import TaskData
from expertflow_jax.harness.rows import CellRow, measured
from expertflow_jax.inference.loading import LoadedModel
from expertflow_jax.offload.misses import make_miss_policy
from expertflow_jax.studies.accuracy import statistics
from expertflow_jax.studies.accuracy.execution import Execution
from expertflow_jax.studies.accuracy.grid import Cell
from expertflow_jax.studies.accuracy.result_files import read_arrays, read_predictions, remedy
from expertflow_jax.tasks.base import optional, question_of


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What later cells compare with; a finished cell's is read back from its files.

    Attributes:
      texts: answers.
      scores: float [W], each in [0, 1]; NaN where answers are not public.
      first_logits, digests, needed: see `Execution`.
    """

    texts: list[str]
    scores: np.ndarray
    first_logits: np.ndarray
    digests: np.ndarray
    needed: np.ndarray

    @staticmethod
    def of(data: TaskData, execution: Execution) -> "Outcome":
        """Scores the answers by the task's official metric."""
        scores = score_all(data, execution.texts)
        return Outcome(execution.texts, scores, execution.first_logits, execution.digests, execution.needed)

    @staticmethod
    def read(workdir: Path, row: CellRow) -> "Outcome":
        """Reads back a finished all-resident cell; raises InputError if its files are damaged."""
        predictions, arrays = read_predictions(workdir, row), read_arrays(workdir, row)
        try:
            steps, layers, experts = (int(n) for n in arrays["needed_shape"])
            bits = np.unpackbits(arrays["needed"], count=steps * layers * experts)
            if not len(arrays["first_logits"]) == len(arrays["digests"]) == len(predictions):
                raise ValueError(f"not of {len(predictions)} examples")
        except (KeyError, TypeError, ValueError) as error:
            path = workdir / f"arrays/{row.cell_id}.npz"
            raise InputError(f"{path}: not the arrays of its cell ({brief(str(error))}); {remedy(workdir)}") from error
        return Outcome(
            [p["prediction"] for p in predictions],
            np.array([p["score"] for p in predictions], float),
            arrays["first_logits"],
            arrays["digests"],
            bits.astype(bool).reshape(steps, layers, experts),
        )

    def arrays(self) -> dict[str, np.ndarray]:
        """What `read` needs beside the predictions."""
        return {
            "first_logits": self.first_logits,
            "digests": self.digests,
            "needed": np.packbits(self.needed),
            "needed_shape": np.array(self.needed.shape),
        }


def score_all(data: TaskData, texts: Sequence[str], *, second: bool = False) -> Float[np.ndarray, " W"]:
    """Scores of answers by the task's evaluator, or its second one; NaN where answers are not public."""
    if not optional(data.task, "scored"):
        return np.full(len(texts), np.nan)
    score = data.task.second_score if second else data.task.score  # type: ignore[attr-defined]
    return np.array([score(example, text) for example, text in zip(data.examples, texts, strict=True)])


def units(data: TaskData, scores: Float[np.ndarray, " W"]) -> tuple[Float[np.ndarray, " U"], np.ndarray]:
    """Scores of the statistical units, and the label of the cluster that each belongs to, [U].

    A unit is a question, clustered by image. Under circular evaluation a question's rotations are one unit, right only
    if every rotation is (MMBench, 2307.06281, section 4.3).
    """
    clusters = np.array([example.cluster for example in data.examples])
    if not data.task.circular:
        return scores, clusters
    questions = [question_of(example) for example in data.examples]
    lowest, names = statistics.group_minimum(scores, questions)
    cluster_of = dict(zip(questions, clusters, strict=True))
    return lowest, np.array([cluster_of[name] for name in names])


def make_row(
    config: ml_collections.ConfigDict,
    model: LoadedModel,
    cell: Cell,
    data: TaskData,
    execution: Execution,
    outcome: Outcome,
    reference: Outcome,
    baseline: Outcome,
    copies_bytes: int = 0,
) -> CellRow:
    """The cell's row.

    Args:
      model: that the cell ran.
      reference: the all-resident run of the same batches, for bit-identity.
      baseline: the all-resident run in order of arrival, for paired accuracy.
      copies_bytes: host bytes of quantised copies of the experts, beside the experts themselves.
    """
    misses = make_miss_policy(cell.miss_policy)
    common = measured(
        execution.stats,
        execution.plan,
        model=model.name,
        variant=cell.variant,
        batch_size=config.batch_size,
        tokens=execution.tokens,
        peak_device_bytes=execution.peak_device_bytes,
    )
    losses: dict[str, Any] = execution.losses.rates()
    return CellRow(
        **{**common, "link": config.link},
        cell_id=cell.id,
        task=cell.task,
        split=config.split,
        scheduler=cell.scheduler,
        miss_policy=cell.miss_policy,
        miss_options=misses.options or None,
        expert_dtype=model.expert_dtype,
        lossless=misses.lossless and cell.variant.lossless and not model.quantized,
        size=cell.size,
        host_bytes=execution.plan.host_bytes + copies_bytes,
        seed=cell.seed,
        num_examples=len(data.examples),
        flips=statistics.count_flips(outcome.texts, baseline.texts),
        **_accuracies(config, cell, data, outcome, baseline),
        logit_kl=float(statistics.logit_kl(baseline.first_logits, outcome.first_logits).mean()),
        margin_delta=float(statistics.margin_change(baseline.first_logits, outcome.first_logits).mean()),
        **losses,
        bit_identical=bool((outcome.digests == reference.digests).all()),
        disk_bytes=execution.stats["disk_bytes"],
        batches_per_block=cell.batches_per_block,
        first_token_seconds=execution.first_token_seconds,
        predictor_tokens_saved=execution.stats["predictor_tokens_saved"],
        experts_per_batch=execution.experts_per_batch,
        perplexity=None if execution.nats is None else math.exp(execution.nats),
    )


_COMPARED = (
    "accuracy", "accuracy_ci_low", "accuracy_ci_high", "reference_accuracy", "accuracy_delta", "delta_ci_low",
    "delta_ci_high", "p_value", "equivalence_p", "mcnemar_p", "second_accuracy", "second_reference_accuracy"
)  # fmt: skip


def _accuracies(
    config: ml_collections.ConfigDict, cell: Cell, data: TaskData, outcome: Outcome, baseline: Outcome
) -> dict[str, Any]:
    """The row's keys that compare with the right answers, and by whose rule; None where these are not public."""
    sample = {"samples": config.bootstrap_samples, "seed": cell.seed}
    scores, clusters = units(data, outcome.scores)
    margin = config.equivalence_margin
    about = {
        "units": len(np.unique(clusters)),
        "evaluator": optional(data.task, "evaluator"),
        "second_evaluator": optional(data.task, "second_evaluator"),
        "equivalence_margin": margin,
    }
    if not optional(data.task, "scored"):
        return about | dict.fromkeys(_COMPARED)
    before, _ = units(data, baseline.scores)
    identical = bool((outcome.digests == baseline.digests).all())  # also to other batches, if these differ
    accuracy = statistics.bootstrap_mean(scores, clusters=clusters, **sample)
    delta = statistics.paired_difference(scores, before, clusters=clusters, identical=identical, **sample)
    equivalence = statistics.equivalence(scores, before, margin, clusters=clusters, seed=cell.seed, identical=identical)
    second: list[float | None] = [None, None]
    if about["second_evaluator"]:
        texts = (outcome.texts, baseline.texts)
        second = [float(units(data, score_all(data, some, second=True))[0].mean()) for some in texts]
    return about | {
        "accuracy": accuracy.estimate,
        "accuracy_ci_low": accuracy.low,
        "accuracy_ci_high": accuracy.high,
        "reference_accuracy": float(before.mean()),
        "accuracy_delta": delta.estimate,
        "delta_ci_low": delta.low,
        "delta_ci_high": delta.high,
        "p_value": statistics.sign_flip(scores, before, clusters=clusters, seed=cell.seed).p,
        "equivalence_p": equivalence,
        "mcnemar_p": statistics.mcnemar(scores, before).p,
        "second_accuracy": second[0],
        "second_reference_accuracy": second[1],
    }


def predictions(data: TaskData, outcome: Outcome, baseline: Outcome) -> list[dict[str, Any]]:
    """One mapping per example, as `predictions/<cell>.jsonl` holds them."""
    rows: Sequence[tuple] = list(zip(data.examples, outcome.texts, outcome.scores, baseline.texts, strict=True))
    return [
        {
            "id": example.id,
            "prediction": text,
            "target": example.target,
            "score": None if np.isnan(score) else float(score),
            "reference_prediction": reference,
        }
        for example, text, score, reference in rows
    ]
