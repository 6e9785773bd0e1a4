"""Confidence intervals of means over clusters: questions about one image are not independent, so images are counted.

Bootstrap limits are bias-corrected and accelerated (BCa; Efron 1987) and resample whole clusters. Where few clusters
differ at all, a bootstrap knows too little: from 128 answers that are all alike it makes certainty. There the exact
limits of a proportion (Clopper and Pearson 1934) hold, with one trial per cluster.
Axes: N examples, C clusters, R bootstrap samples, D distinct kinds of clusters (equal sum and equal size).
"""

import dataclasses

import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike
from scipy import stats

from expertflow_jax.errors import InputError

_DRAWS_AT_ONCE = 1 << 22  # cluster draws per block, which bounds the memory of a bootstrap


@dataclasses.dataclass(frozen=True)
class Interval:
    """An estimate and its confidence interval."""

    estimate: float
    low: float
    high: float


def cluster_sums(
    values: Float[np.ndarray, " N"], clusters: ArrayLike | None
) -> tuple[Float[np.ndarray, " C"], Float[np.ndarray, " C"]]:
    """Sum and number of values per cluster; without clusters every value is its own.

    Raises:
      InputError: not one label per value.
    """
    if clusters is None:
        return values, np.ones_like(values)
    labels = np.asarray(clusters)
    if labels.shape != values.shape:
        raise InputError(f"clusters: shape {labels.shape}, want {values.shape}, one per score")
    _, index = np.unique(labels, return_inverse=True)
    return np.bincount(index, values), np.bincount(index).astype(np.float64)


def common_mean(sums: Float[np.ndarray, " C"], counts: Float[np.ndarray, " C"]) -> float | None:
    """The mean that all clusters share, if they do."""
    means = sums / counts
    return float(means[0]) if np.ptp(means) < 1e-12 else None


def clopper_pearson(mean: float, trials: int, confidence: float) -> tuple[float, float]:
    """Exact limits of a proportion; `mean * trials` may be fractional where answers get partial credit."""
    tail, successes = tail_of(confidence), mean * trials
    low = stats.beta.ppf(tail, successes, trials - successes + 1) if successes > 0 else 0.0
    high = stats.beta.ppf(1 - tail, successes + 1, trials - successes) if successes < trials else 1.0
    return float(low), float(high)


def tail_of(confidence: float) -> float:
    """What a two-sided interval leaves out at either end; raises InputError outside (0, 1)."""
    if not 0 < confidence < 1:
        raise InputError(f"confidence: {confidence} is not in (0, 1)")
    return (1 - confidence) / 2


class Bootstrap:
    """BCa limits of sum / count over clusters (Efron and Tibshirani 1993, section 14.3), for any confidence.

    Args:
      means: float64 [R], of the bootstrap samples.
    """

    def __init__(
        self, sums: Float[np.ndarray, " C"], counts: Float[np.ndarray, " C"], means: Float[np.ndarray, " R"]
    ) -> None:
        self.estimate = float(sums.sum() / counts.sum())
        self._means = np.sort(means)
        # ties count half: means of 0/1 scores often equal the estimate
        below = (np.sum(means < self.estimate) + 0.5 * np.sum(means == self.estimate)) / len(means)
        self._bias = stats.norm.ppf(np.clip(below, 0.5 / len(means), 1 - 0.5 / len(means)))
        left_out = (sums.sum() - sums) / (counts.sum() - counts)
        apart = left_out.mean() - left_out
        spread = (apart**2).sum() ** 1.5
        self._acceleration = (apart**3).sum() / (6 * spread) if spread > 0 else 0.0

    def limits(self, confidence: float) -> tuple[float, float]:
        """Low and high; the estimate is always between them."""
        tail = tail_of(confidence)
        z = self._bias + stats.norm.ppf([tail, 1 - tail])
        stretch = 1 - self._acceleration * z
        beyond = np.where(z > 0, np.inf, -np.inf)  # past the pole of the acceleration lies the last sample
        shifted = np.where(stretch > 0, self._bias + z / np.where(stretch > 0, stretch, 1.0), beyond)
        low, high = np.quantile(self._means, stats.norm.cdf(shifted))
        return min(float(low), self.estimate), max(float(high), self.estimate)


def resampled_means(
    sums: Float[np.ndarray, " C"], counts: Float[np.ndarray, " C"], samples: int, seed: int
) -> Float[np.ndarray, " R"]:
    """Mean of every bootstrap sample: C clusters drawn with replacement."""
    rng, clusters = np.random.default_rng(seed), len(sums)
    block = max(1, _DRAWS_AT_ONCE // clusters)
    means = []
    for start in range(0, _checked_samples(samples), block):
        draws_RxC = rng.integers(clusters, size=(min(block, samples - start), clusters), dtype=np.int32)
        means.append(sums[draws_RxC].sum(axis=1) / counts[draws_RxC].sum(axis=1))
    return np.concatenate(means)


def resampled_kinds(
    sums: Float[np.ndarray, " C"], counts: Float[np.ndarray, " C"], samples: int, seed: int
) -> Float[np.ndarray, " R"]:
    """The same in distribution, drawn as the number of each kind of cluster: most paired differences are 0."""
    kinds_Dx2, repeats = np.unique(np.stack([sums, counts], axis=1), axis=0, return_counts=True)
    shares = repeats / repeats.sum()
    rng, block = np.random.default_rng(seed), max(1, _DRAWS_AT_ONCE // len(repeats))
    means = []
    for start in range(0, _checked_samples(samples), block):
        draws_RxD = rng.multinomial(len(sums), shares, size=min(block, samples - start))
        sums_and_counts_Rx2 = draws_RxD @ kinds_Dx2
        means.append(sums_and_counts_Rx2[:, 0] / sums_and_counts_Rx2[:, 1])
    return np.concatenate(means)


class PairedLimits:
    """Limits of a mean paired difference that hold from no differing cluster to many.

    They span two intervals. BCa is right where many clusters differ, whatever their sizes and the credit of an answer.
    The other treats the shares of worse and of better clusters as proportions, takes the exact limits of each, and
    joins them as Zou and Donner do (MOVER, 2008): low = d - sqrt((worse_high - worse)^2 + (better - better_low)^2). It
    is right where few differ: if none does, low is -(1 - tail^(1/C)), what C equal answers leave open.

    Args:
      sums, counts: per cluster, the sum of its differences, and its examples.
      samples: of the bootstrap.
    """

    def __init__(
        self, sums: Float[np.ndarray, " C"], counts: Float[np.ndarray, " C"], *, samples: int, seed: int
    ) -> None:
        total = counts.sum()
        self.estimate = float(sums.sum() / total)
        self._trials = len(sums)
        self._better = float(np.maximum(sums, 0.0).sum() / total)
        self._worse = float(np.maximum(-sums, 0.0).sum() / total)
        self._common = common_mean(sums, counts)
        self._bootstrap = None
        if self._common is None:
            self._bootstrap = Bootstrap(sums, counts, resampled_kinds(sums, counts, samples, seed))

    def limits(self, confidence: float) -> tuple[float, float]:
        """Low and high, in [-1, 1]."""
        better_low, better_high = clopper_pearson(self._better, self._trials, confidence)
        worse_low, worse_high = clopper_pearson(self._worse, self._trials, confidence)
        # at a confidence near 0 both exact limits may lie on one side of the share
        room = [
            (max(0.0, worse_high - self._worse), max(0.0, self._better - better_low)),
            (max(0.0, better_high - self._better), max(0.0, self._worse - worse_low)),
        ]
        low, high = self.estimate - np.hypot(*room[0]), self.estimate + np.hypot(*room[1])
        if self._bootstrap is not None:
            others = self._bootstrap.limits(confidence)
        elif self._common:  # all clusters alike, which leaves a bootstrap nothing to draw
            least, most = clopper_pearson((self._common + 1) / 2, self._trials, confidence)
            others = (2 * least - 1, 2 * most - 1)
        else:
            others = (self.estimate, self.estimate)
        return max(-1.0, float(min(low, others[0]))), min(1.0, float(max(high, others[1])))


def _checked_samples(samples: int) -> int:
    if samples < 1:
        raise InputError(f"bootstrap samples: {samples} is below 1")
    return samples
