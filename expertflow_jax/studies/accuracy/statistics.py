"""Paired statistics of a study: intervals, tests, and the noise floor below which nothing may be claimed.

Intervals are bias-corrected and accelerated bootstraps (BCa; Efron 1987) that resample whole clusters, because
questions about one image are not independent. Tests are McNemar's (1947, exact) and Holm's (1979) adjustment. The
noise floor is DESIGN section 10's: what regrouping the batches at random moves in an all-resident model.
Axes: N examples or questions, C clusters, R bootstrap samples, V vocabulary, M tests.
"""

import dataclasses
from collections.abc import Hashable, Iterable, Sequence

import numpy as np
from numpy.typing import ArrayLike
from scipy import special, stats

from expertflow_jax.errors import InputError
from expertflow_jax.harness.rows import CellRow

_DRAWS_AT_ONCE = 1 << 22  # cluster draws per block, which bounds the memory of a bootstrap


@dataclasses.dataclass(frozen=True)
class Interval:
    """An estimate and its confidence interval."""

    estimate: float
    low: float
    high: float


@dataclasses.dataclass(frozen=True)
class McNemar:
    """Examples that got better and worse, and the exact two-sided p of so uneven a split if neither were likelier."""

    better: int
    worse: int
    p: float


@dataclasses.dataclass(frozen=True)
class NoiseFloor:
    """Largest effects of regrouping batches at random with every expert on the device.

    Attributes:
      cells: how many such cells a task has; with 0 nothing is known of the noise.
      accuracy: largest absolute difference in accuracy.
      flips: most changed answers.
      logit_kl: largest mean KL divergence of the first answer token, in nats.
    """

    cells: int
    accuracy: float
    flips: int
    logit_kl: float


def bootstrap_mean(
    scores: ArrayLike,
    *,
    samples: int = 2000,
    seed: int = 0,
    clusters: ArrayLike | None = None,
    confidence: float = 0.95,
) -> Interval:
    """Mean score and its BCa interval.

    Where every cluster has the same mean, a bootstrap would claim certainty; then the interval is the exact one of
    Clopper and Pearson with one trial per cluster.

    Args:
      scores: float [N], each in [0, 1].
      clusters: any labels [N]; whole clusters are drawn. None: every example is its own.

    Raises:
      InputError: no scores, scores that are not numbers in [0, 1], or a confidence outside (0, 1).
    """
    values = _checked(scores)
    sums, counts = _cluster_sums(values, clusters)
    if (constant := _constant(sums, counts)) is not None:
        low, high = _clopper_pearson(constant, len(sums), confidence)
        return Interval(constant, low, high)
    return _bca(sums, counts, samples, seed, confidence)


def paired_difference(
    scores: ArrayLike,
    reference: ArrayLike,
    *,
    samples: int = 2000,
    seed: int = 0,
    clusters: ArrayLike | None = None,
    confidence: float = 0.95,
) -> Interval:
    """Mean of scores - reference, paired by position, and its BCa interval; zero wide if no score differs.

    Args:
      scores, reference: float [N], each in [0, 1].
      clusters: see `bootstrap_mean`.

    Raises:
      InputError: as `bootstrap_mean`, or different lengths.
    """
    mine, other = _paired(scores, reference)
    difference = mine - other
    if not difference.any():
        return Interval(0.0, 0.0, 0.0)
    sums, counts = _cluster_sums(difference, clusters)
    if (constant := _constant(sums, counts)) is not None:
        low, high = _clopper_pearson((constant + 1) / 2, len(sums), confidence)
        return Interval(constant, 2 * low - 1, 2 * high - 1)
    return _bca(sums, counts, samples, seed, confidence)


def group_minimum(scores: ArrayLike, groups: Iterable[Hashable]) -> tuple[np.ndarray, list]:
    """Lowest score of every group: float64 [groups], and the groups' names in order of first appearance.

    MMBench's circular evaluation (2307.06281, section 4.3): a question is right if all its rotations are.
    """
    values = _checked(scores)
    lowest: dict[Hashable, float] = {}
    labels = [g.item() if isinstance(g, np.generic) else g for g in groups]
    for group, score in zip(labels, values, strict=True):
        lowest[group] = min(lowest.get(group, np.inf), float(score))
    return np.array(list(lowest.values())), list(lowest)


def count_flips(predictions: Sequence[str], reference: Sequence[str]) -> int:
    """Answers that differ from the reference's, by position."""
    return sum(mine != other for mine, other in zip(predictions, reference, strict=True))


def mcnemar(scores: ArrayLike, reference: ArrayLike) -> McNemar:
    """Exact McNemar test of paired scores; with partial credit it is the sign test of better against worse.

    Args:
      scores, reference: float [N], each in [0, 1].
    """
    mine, other = _paired(scores, reference)
    better, worse = int((mine > other).sum()), int((mine < other).sum())
    p = float(stats.binomtest(better, better + worse).pvalue) if better + worse else 1.0
    return McNemar(better, worse, p)


def holm(p_values: ArrayLike) -> np.ndarray:
    """Holm's adjusted p: float64 [M]; below alpha in a family-wise sense, whatever the tests' dependence."""
    p = np.asarray(p_values, np.float64)
    order = np.argsort(p, kind="stable")
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)))
    return adjusted


def logit_kl(reference: ArrayLike, other: ArrayLike) -> np.ndarray:
    """KL(softmax(reference) || softmax(other)) in nats: float64 [N], exactly 0 for equal logits.

    Args:
      reference, other: logits [N, V].
    """
    a, b = np.asarray(reference), np.asarray(other)
    if a.shape != b.shape or a.ndim != 2:
        raise InputError(f"logits to compare: shapes {a.shape} and {b.shape}, want the same [N, V]")
    divergence = np.empty(len(a))
    for i in range(len(a)):  # by row: a vocabulary of 152k in float64 is large
        p, q = special.log_softmax(a[i].astype(np.float64)), special.log_softmax(b[i].astype(np.float64))
        mass = np.exp(p)
        with np.errstate(invalid="ignore"):
            terms = np.where(mass > 0, mass * (p - q), 0.0)
        # the two distributions sum to 1, so this adds nothing but keeps every term from being negative
        divergence[i] = np.maximum(terms - mass + np.exp(q), 0.0).sum()
    return divergence


def noise_floor(rows: Iterable[CellRow]) -> dict[str, NoiseFloor]:
    """The noise floor of every task among `rows`, from its all-resident cells with the `random` scheduler."""
    found: dict[str, list[CellRow]] = {}
    for row in rows:
        cells = found.setdefault(row.task, [])
        if row.policy == "resident" and row.scheduler == "random" and row.lossless:
            cells.append(row)
    return {
        task: NoiseFloor(
            len(cells),
            max((abs(row.accuracy_delta) for row in cells), default=0.0),
            max((row.flips for row in cells), default=0),
            max((row.logit_kl for row in cells), default=0.0),
        )
        for task, cells in found.items()
    }


def _checked(scores: ArrayLike) -> np.ndarray:
    values = np.asarray(scores, np.float64)
    if values.ndim != 1 or not values.size:
        raise InputError(f"scores: shape {values.shape}, want [N] with at least one")
    if not ((values >= 0) & (values <= 1)).all():
        raise InputError("scores: want numbers in [0, 1]")
    return values


def _paired(scores: ArrayLike, reference: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    mine, other = _checked(scores), _checked(reference)
    if len(mine) != len(other):
        raise InputError(f"paired scores: {len(mine)} and {len(other)}, want as many of each")
    return mine, other


def _cluster_sums(values: np.ndarray, clusters: ArrayLike | None) -> tuple[np.ndarray, np.ndarray]:
    """Sum and number of values per cluster, float64 [C] each."""
    if clusters is None:
        return values, np.ones_like(values)
    labels = np.asarray(clusters)
    if labels.shape != values.shape:
        raise InputError(f"clusters: shape {labels.shape}, want {values.shape}, one per score")
    _, index = np.unique(labels, return_inverse=True)
    return np.bincount(index, values), np.bincount(index).astype(np.float64)


def _constant(sums: np.ndarray, counts: np.ndarray) -> float | None:
    """The mean that all clusters share, if they do."""
    means = sums / counts
    return float(means[0]) if np.ptp(means) < 1e-12 else None


def _clopper_pearson(mean: float, trials: int, confidence: float) -> tuple[float, float]:
    tail, right = _tail(confidence), mean * trials
    low = stats.beta.ppf(tail, right, trials - right + 1) if right > 0 else 0.0
    high = stats.beta.ppf(1 - tail, right + 1, trials - right) if right < trials else 1.0
    return float(low), float(high)


def _tail(confidence: float) -> float:
    if not 0 < confidence < 1:
        raise InputError(f"confidence: {confidence} is not in (0, 1)")
    return (1 - confidence) / 2


def _bca(sums: np.ndarray, counts: np.ndarray, samples: int, seed: int, confidence: float) -> Interval:
    """BCa interval of sum / count over clusters (Efron and Tibshirani 1993, section 14.3)."""
    if samples < 1:
        raise InputError(f"bootstrap samples: {samples} is below 1")
    estimate = float(sums.sum() / counts.sum())
    means = _resampled(sums, counts, samples, np.random.default_rng(seed))
    # ties count half: means of 0/1 scores often equal the estimate
    below = (np.sum(means < estimate) + 0.5 * np.sum(means == estimate)) / samples
    bias = stats.norm.ppf(np.clip(below, 0.5 / samples, 1 - 0.5 / samples))
    left_out = (sums.sum() - sums) / (counts.sum() - counts)
    apart = left_out.mean() - left_out
    spread = (apart**2).sum() ** 1.5
    acceleration = (apart**3).sum() / (6 * spread) if spread > 0 else 0.0
    z = bias + stats.norm.ppf([_tail(confidence), 1 - _tail(confidence)])
    quantiles = stats.norm.cdf(bias + z / (1 - acceleration * z))
    low, high = np.quantile(means, quantiles)
    return Interval(estimate, min(float(low), estimate), max(float(high), estimate))


def _resampled(sums: np.ndarray, counts: np.ndarray, samples: int, rng: np.random.Generator) -> np.ndarray:
    """Mean of every bootstrap sample, float64 [R]: C clusters drawn with replacement."""
    clusters = len(sums)
    block = max(1, _DRAWS_AT_ONCE // clusters)
    means = []
    for start in range(0, samples, block):
        drawn = rng.integers(clusters, size=(min(block, samples - start), clusters), dtype=np.int32)
        means.append(sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1))
    return np.concatenate(means)
