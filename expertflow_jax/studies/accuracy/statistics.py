"""Paired statistics of a study: intervals, tests, and the noise floor below which nothing may be claimed.

Intervals are those of `intervals`. A difference is claimed by a test that flips the signs of whole clusters (Fisher
1935; with scores of 0 and 1 and no clusters it is McNemar's exact test, 1947), no difference by two one-sided tests
against a margin (TOST; Schuirmann 1987), both after Holm's adjustment (1979). The noise floor is DESIGN section 10's:
what regrouping the batches at random moves in an all-resident model.
Axes: N examples or questions, C clusters, V vocabulary, M tests.
"""

import dataclasses
from collections.abc import Hashable, Iterable, Sequence

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import ArrayLike
from scipy import special, stats

from expertflow_jax.errors import InputError
from expertflow_jax.harness.rows import CellRow
from expertflow_jax.studies.accuracy.intervals import (
    Bootstrap,
    Interval,
    PairedLimits,
    clopper_pearson,
    cluster_sums,
    common_mean,
    resampled_means,
)

FLIP_SAMPLES = 99_999  # p >= 1 / (FLIP_SAMPLES + 1), far below 0.05 / 64
EQUIVALENCE_SAMPLES = 20_000  # its p cannot be smaller than about one of these: enough for Holm over 1,000 cells
_GRID = 1000  # scores that are multiples of 1 / n, n up to this, have an exact distribution of signed sums
_EXACT_STEPS = 300_000_000  # additions that it may cost; above, signs are sampled


@dataclasses.dataclass(frozen=True)
class McNemar:
    """Examples that got better and worse, and the exact two-sided p of so uneven a split if neither were likelier."""

    better: int
    worse: int
    p: float


@dataclasses.dataclass(frozen=True)
class SignFlip:
    """Test of a mean paired difference.

    Attributes:
      direction: -1 if the scores are lower than the reference's in sum, 1 if higher, 0 if neither.
      p: two-sided, of so large a sum if every cluster's difference were as likely to have the other sign.
      exact: whether p is of all sign patterns, not of a sample of them.
    """

    direction: int
    p: float
    exact: bool


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
    sums, counts = cluster_sums(_checked(scores), clusters)
    if (constant := common_mean(sums, counts)) is not None:
        return Interval(constant, *clopper_pearson(constant, len(sums), confidence))
    bootstrap = Bootstrap(sums, counts, resampled_means(sums, counts, samples, seed))
    return Interval(bootstrap.estimate, *bootstrap.limits(confidence))


def paired_difference(
    scores: ArrayLike,
    reference: ArrayLike,
    *,
    samples: int = 2000,
    seed: int = 0,
    clusters: ArrayLike | None = None,
    confidence: float = 0.95,
    identical: bool = False,
) -> Interval:
    """Mean of scores - reference, paired by position, and an interval that holds also where few scores differ.

    Args:
      scores, reference: float [N], each in [0, 1].
      clusters: see `bootstrap_mean`.
      identical: both come from the same computation, bit for bit. Only then is the interval [0, 0]; equal scores alone
        prove nothing about other questions.

    Raises:
      InputError: as `bootstrap_mean`, different lengths, or identical computations with different scores.
    """
    difference = _difference(scores, reference, identical)
    if identical:
        return Interval(0.0, 0.0, 0.0)
    paired = PairedLimits(*cluster_sums(difference, clusters), samples=samples, seed=seed)
    return Interval(paired.estimate, *paired.limits(confidence))


def equivalence(
    scores: ArrayLike,
    reference: ArrayLike,
    margin: float,
    *,
    samples: int = EQUIVALENCE_SAMPLES,
    seed: int = 0,
    clusters: ArrayLike | None = None,
    identical: bool = False,
) -> float:
    """p of the hypothesis that the mean paired difference is `margin` or more in either direction.

    Two one-sided tests at level a reject both directions where the (1 - 2a) interval of `paired_difference` lies inside
    the margin. So p < 0.05 says that the 90% interval does. p is at least 1 / (samples + 1), 1 where no interval
    that has the estimate inside lies within the margin, and 0 for identical computations, which need no test.

    Args:
      margin: in (0, 1): the largest difference that counts as none.
      scores, reference, clusters, identical: see `paired_difference`.

    Raises:
      InputError: as `paired_difference`, or a margin outside (0, 1).
    """
    if not 0 < margin < 1:
        raise InputError(f"equivalence margin: {margin} is not in (0, 1); 0.01 is one percentage point")
    difference = _difference(scores, reference, identical)
    if identical:
        return 0.0
    paired = PairedLimits(*cluster_sums(difference, clusters), samples=samples, seed=seed)

    def within(level: float) -> bool:
        low, high = paired.limits(1 - 2 * level)
        return -margin < low and high < margin

    refused, accepted = 1 / (samples + 1), 0.499
    if within(refused):
        return refused
    if not within(accepted):
        return 1.0
    while accepted - refused > 1e-3 * accepted:
        middle = (refused * accepted) ** 0.5
        refused, accepted = (refused, middle) if within(middle) else (middle, accepted)
    return accepted


def sign_flip(
    scores: ArrayLike,
    reference: ArrayLike,
    *,
    clusters: ArrayLike | None = None,
    samples: int = FLIP_SAMPLES,
    seed: int = 0,
) -> SignFlip:
    """Two-sided test of the mean paired difference that flips the signs of whole clusters' summed differences.

    Exact where scores are multiples of a common fraction (0/1, the tenths of VQA, tokens right of so many) or few
    clusters differ; else from `samples` random sign patterns, and p >= 1 / (samples + 1).

    Args:
      scores, reference: float [N], each in [0, 1].
      clusters: see `bootstrap_mean`.

    Raises:
      InputError: as `paired_difference`.
    """
    sums, _ = cluster_sums(_difference(scores, reference, False), clusters)
    sums = sums[np.abs(sums) > 1e-9]  # a cluster without a difference has no sign to flip
    if not sums.size:
        return SignFlip(0, 1.0, True)
    whole = _as_multiples(sums)
    if whole is not None and np.abs(whole).sum() * len(whole) <= _EXACT_STEPS:
        return SignFlip(int(np.sign(whole.sum())), _exact_flips(whole), True)
    test = stats.permutation_test(
        (sums,), np.sum, permutation_type="samples", n_resamples=samples, vectorized=True, batch=4096, rng=seed
    )
    return SignFlip(int(np.sign(test.statistic)), float(test.pvalue), 2 ** len(sums) <= samples)


def _as_multiples(sums: Float[np.ndarray, " C"]) -> Int[np.ndarray, " C"] | None:
    """The sums as whole multiples of the largest fraction 1/n that fits them all, if one does."""
    sizes = np.unique(np.abs(sums))
    for parts in range(1, _GRID + 1):
        scaled = sizes * parts
        if np.abs(scaled - np.rint(scaled)).max() < 1e-7:
            return np.rint(sums * parts).astype(np.int64)
    return None


def _exact_flips(sums: Int[np.ndarray, " C"]) -> float:
    """Share of all 2^C sign patterns whose sum is as far from 0 as the given one.

    The sum of the positive ones is a sum of independent binomials, one per size: so many clusters of that size are
    positive. Its distribution is built size by size, as McNemar's is for a single one.
    """
    sizes, repeats = np.unique(np.abs(sums), return_counts=True)
    total = int(np.abs(sums).sum())
    positive = np.zeros(total + 1)  # of every sum of positive ones, its probability
    positive[0], reach = 1.0, 0
    for size, repeat in zip(sizes.tolist(), repeats.tolist(), strict=True):
        before = positive[: reach + 1].copy()
        reach += size * repeat
        positive[: reach + 1] = 0.0
        for number, share in enumerate(stats.binom.pmf(np.arange(repeat + 1), repeat, 0.5)):
            positive[number * size : number * size + len(before)] += share * before
    far = np.abs(2 * np.arange(total + 1) - total) >= abs(int(sums.sum()))
    return min(1.0, float(positive[far].sum()))


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
    return sum(answer != other for answer, other in zip(predictions, reference, strict=True))


def mcnemar(scores: ArrayLike, reference: ArrayLike) -> McNemar:
    """Exact McNemar test of paired scores; with partial credit it is the sign test of better against worse.

    It describes a cell whose scores are independent. No claim rests on it: it counts who got better and who worse, not
    by how much, and takes questions about one image for independent ones. `sign_flip` does neither.

    Args:
      scores, reference: float [N], each in [0, 1].
    """
    checked, other = _paired(scores, reference)
    better, worse = int((checked > other).sum()), int((checked < other).sum())
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


def margin_change(reference: ArrayLike, other: ArrayLike) -> np.ndarray:
    """Change of the margin, log-probability of the reference's likeliest token less that of the best other one, in
    nats: float64 [N]. Below zero the answer is less sure, even where it stays the same.

    Args:
      reference, other: logits [N, V], V at least 2.
    """
    before, after = np.asarray(reference, np.float64), np.asarray(other, np.float64)
    first = before.argmax(axis=1)[:, None]

    def margin(logits: np.ndarray) -> np.ndarray:
        others = logits.copy()
        np.put_along_axis(others, first, -np.inf, axis=1)
        return np.take_along_axis(logits, first, axis=1)[:, 0] - others.max(axis=1)

    return margin(after) - margin(before)


def noise_floor(rows: Iterable[CellRow]) -> dict[str, NoiseFloor]:
    """The noise floor of every task among `rows`, from its all-resident cells with the `random` scheduler."""
    cells_of: dict[str, list[CellRow]] = {}
    for row in rows:
        cells = cells_of.setdefault(row.task, [])
        if row.policy == "resident" and row.scheduler == "random" and row.lossless:
            cells.append(row)
    return {
        task: NoiseFloor(
            len(cells),
            max((abs(row.accuracy_delta) for row in cells), default=0.0),
            max((row.flips for row in cells), default=0),
            max((row.logit_kl for row in cells), default=0.0),
        )
        for task, cells in cells_of.items()
    }


def _checked(scores: ArrayLike) -> Float[np.ndarray, " N"]:
    values = np.asarray(scores, np.float64)
    if values.ndim != 1 or not values.size:
        raise InputError(f"scores: shape {values.shape}, want [N] with at least one")
    if not ((values >= 0) & (values <= 1)).all():
        raise InputError("scores: want numbers in [0, 1]")
    return values


def _paired(scores: ArrayLike, reference: ArrayLike) -> tuple[Float[np.ndarray, " N"], Float[np.ndarray, " N"]]:
    checked, other = _checked(scores), _checked(reference)
    if len(checked) != len(other):
        raise InputError(f"paired scores: {len(checked)} and {len(other)}, want as many of each")
    return checked, other


def _difference(scores: ArrayLike, reference: ArrayLike, identical: bool) -> Float[np.ndarray, " N"]:
    checked, other = _paired(scores, reference)
    if identical and not np.array_equal(checked, other):
        raise InputError("paired scores: of identical computations, but they differ")
    return checked - other
