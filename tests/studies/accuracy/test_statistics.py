"""Statistics against known values, scipy's own, and their meaning: coverage, pairing, exactness."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_up_rows import row
from scipy import stats

from expertflow_jax.errors import InputError
from expertflow_jax.studies.accuracy import intervals, statistics
from expertflow_jax.studies.accuracy.statistics import Interval


def coin(n: int, p: float, seed: int = 0) -> np.ndarray:
    return (np.random.default_rng(seed).random(n) < p).astype(float)


def test_bootstrap_is_scipys_bca():
    scores = np.random.default_rng(1).beta(2, 5, size=60)
    mine = statistics.bootstrap_mean(scores, samples=20_000, seed=3)
    theirs = stats.bootstrap((scores,), np.mean, n_resamples=20_000, method="BCa", rng=4).confidence_interval
    assert mine.estimate == pytest.approx(scores.mean())
    assert (mine.low, mine.high) == pytest.approx((theirs.low, theirs.high), abs=0.003)


def test_bootstrap_is_deterministic_and_seeded():
    scores = coin(80, 0.6)
    assert statistics.bootstrap_mean(scores, seed=5) == statistics.bootstrap_mean(scores, seed=5)
    assert (
        statistics.bootstrap_mean(scores, seed=5, confidence=0.8).high < statistics.bootstrap_mean(scores, seed=5).high
    )


def test_interval_covers_the_truth():
    truth, clusters = 0.7, np.repeat(np.arange(40), 5)
    covered = 0
    for seed in range(200):
        per_cluster = np.random.default_rng(seed).beta(7, 3, size=40)  # mean 0.7, questions of an image go together
        scores = (np.random.default_rng(1000 + seed).random(200) < np.repeat(per_cluster, 5)).astype(float)
        found = statistics.bootstrap_mean(scores, samples=500, seed=seed, clusters=clusters)
        covered += found.low <= truth <= found.high
    assert 0.89 <= covered / 200 <= 0.99


def test_clusters_that_agree_count_once():
    answers = coin(30, 0.5)
    single = statistics.bootstrap_mean(answers, seed=2)
    fivefold = statistics.bootstrap_mean(np.repeat(answers, 5), seed=2, clusters=np.repeat(np.arange(30), 5))
    assert fivefold == single
    careless = statistics.bootstrap_mean(np.repeat(answers, 5), seed=2)
    assert careless.high - careless.low < 0.6 * (single.high - single.low)


def test_cluster_labels_may_be_text_and_in_any_order():
    scores, labels = coin(40, 0.5), np.arange(40) % 10
    shuffled = np.random.default_rng(0).permutation(40)
    texts = np.array([f"image-{label}" for label in labels])
    expected = statistics.bootstrap_mean(scores, clusters=labels)
    assert statistics.bootstrap_mean(scores[shuffled], clusters=labels[shuffled]) == expected
    assert statistics.bootstrap_mean(scores, clusters=texts) == expected


@pytest.mark.parametrize(("score", "low", "high"), [(1.0, 0.6915028921812392, 1.0), (0.0, 0.0, 0.3084971078187608)])
def test_equal_scores_still_leave_doubt(score, low, high):
    found = statistics.bootstrap_mean(np.full(10, score))
    assert (found.low, found.estimate, found.high) == pytest.approx((low, score, high))
    exact = stats.binomtest(int(10 * score), 10).proportion_ci(method="exact")
    assert (found.low, found.high) == pytest.approx((exact.low, exact.high))


def test_equal_clusters_count_as_one_trial_each():
    found = statistics.bootstrap_mean(np.ones(50), clusters=np.repeat([0, 1], 25))
    exact = stats.binomtest(2, 2).proportion_ci(method="exact")
    assert found == Interval(1.0, pytest.approx(exact.low), 1.0)


def test_only_identical_computations_have_no_width():
    scores = coin(50, 0.7)
    assert statistics.paired_difference(scores, scores, identical=True) == Interval(0.0, 0.0, 0.0)
    assert statistics.equivalence(scores, scores, 0.01, identical=True) == 0
    with pytest.raises(InputError, match="but they differ"):
        statistics.paired_difference(scores, 1 - scores, identical=True)


@pytest.mark.parametrize(("units", "open_to_change"), [(8, 0.369), (34, 0.103), (128, 0.028)])
def test_equal_scores_leave_room_for_a_difference(units, open_to_change):
    """What no differing unit of so many leaves open, both ways; five questions of an image are one unit."""
    scores = coin(units, 0.7)
    found = statistics.paired_difference(scores, scores)
    assert (found.low, found.estimate, found.high) == pytest.approx((-open_to_change, 0, open_to_change), abs=5e-4)
    exact = stats.binomtest(0, units).proportion_ci(method="exact")
    assert found.high == pytest.approx(exact.high)
    images = np.repeat(np.arange(units), 5)
    fivefold = statistics.paired_difference(np.repeat(scores, 5), np.repeat(scores, 5), clusters=images)
    assert fivefold == found


def test_one_lost_answer_leaves_room_for_a_gain():
    reference = coin(128, 0.7)
    worse = reference.copy()
    worse[np.argmax(reference)] = 0
    found = statistics.paired_difference(worse, reference)
    assert found.estimate == -1 / 128
    assert found.low < -0.03
    assert found.high > 0.01


def test_paired_difference_knows_the_pairs():
    reference = coin(400, 0.5, seed=1)
    worse = reference.copy()
    worse[np.flatnonzero(reference)[:12]] = 0
    found = statistics.paired_difference(worse, reference)
    assert found.estimate == pytest.approx(-0.03)
    assert -0.06 < found.low < -0.03 < found.high < 0
    unpaired = statistics.bootstrap_mean(worse)
    assert found.high - found.low < 0.5 * (unpaired.high - unpaired.low)


def test_every_answer_lost_is_not_certainty():
    found = statistics.paired_difference(np.zeros(10), np.ones(10))
    assert found.estimate == found.low == -1
    assert -0.5 < found.high < 0


def test_bootstrap_of_many_clusters_in_bounded_blocks(monkeypatch):
    scores = coin(300, 0.5)
    whole = statistics.bootstrap_mean(scores, samples=100)
    monkeypatch.setattr(intervals, "_DRAWS_AT_ONCE", 1000)
    assert statistics.bootstrap_mean(scores, samples=100) == whole


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: statistics.bootstrap_mean([]), "at least one"),
        (lambda: statistics.bootstrap_mean([0.5, 1.5]), r"\[0, 1\]"),
        (lambda: statistics.bootstrap_mean([0.5, float("nan")]), r"\[0, 1\]"),
        (lambda: statistics.bootstrap_mean([0.0, 1.0], clusters=[1]), "one per score"),
        (lambda: statistics.bootstrap_mean([0.0, 1.0], confidence=95), "not in"),
        (lambda: statistics.bootstrap_mean([0.0, 1.0], samples=0), "below 1"),
        (lambda: statistics.paired_difference([1.0], [1.0, 0.0]), "as many of each"),
        (lambda: statistics.logit_kl(np.zeros((2, 3)), np.zeros((3, 3))), "want the same"),
    ],
)
def test_bad_input_is_named(call, says):
    with pytest.raises(InputError, match=says):
        call()


def test_group_minimum_keeps_the_order_of_first_appearance():
    lowest, names = statistics.group_minimum([1, 0.5, 1, 1, 0], ["b", "a", "b", "a", "c"])
    assert names == ["b", "a", "c"]
    np.testing.assert_array_equal(lowest, [1, 0.5, 0])


def test_count_flips():
    assert statistics.count_flips(["a", "b", "c"], ["a", "B", "d"]) == 2


@pytest.mark.parametrize(("better", "worse", "p"), [(0, 0, 1.0), (3, 0, 0.25), (1, 9, 22 / 1024), (5, 5, 1.0)])
def test_mcnemar_is_exact(better, worse, p):
    mine = np.array([1.0] * better + [0.0] * worse + [1.0] * 4)
    other = np.array([0.0] * better + [1.0] * worse + [1.0] * 4)
    found = statistics.mcnemar(mine, other)
    assert (found.better, found.worse) == (better, worse)
    assert found.p == pytest.approx(p)


def test_mcnemar_counts_partial_credit_by_sign():
    assert statistics.mcnemar([0.9, 0.3, 0.6], [0.6, 0.6, 0.6]).better == 1


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=7))
def test_holm_is_the_closed_test_of_bonferroni(p_values):
    """Holm's adjusted p is the largest Bonferroni p over all intersections that contain the hypothesis."""
    p = np.array(p_values)
    expected = np.zeros(len(p))
    for size in range(1, len(p) + 1):
        for subset in itertools.combinations(range(len(p)), size):
            joint = min(1.0, size * p[list(subset)].min())
            for i in subset:
                expected[i] = max(expected[i], joint)
    np.testing.assert_allclose(statistics.holm(p), expected)


def test_holm_of_nothing():
    assert statistics.holm([]).shape == (0,)


def test_logit_kl():
    logits = np.random.default_rng(0).normal(size=(4, 9)).astype(np.float32)
    other = logits + np.random.default_rng(1).normal(size=(4, 9)).astype(np.float32)
    p, q = (np.exp(x) / np.exp(x).sum(1, keepdims=True) for x in (logits.astype(float), other.astype(float)))
    np.testing.assert_allclose(statistics.logit_kl(logits, other), (p * np.log(p / q)).sum(1), rtol=1e-9)
    np.testing.assert_array_equal(statistics.logit_kl(logits, logits), np.zeros(4))


def test_logit_kl_of_extreme_logits():
    sure, other = np.array([[0.0, -2000.0, -np.inf]]), np.array([[-2000.0, 0.0, -np.inf]])
    assert statistics.logit_kl(sure, other)[0] == pytest.approx(2000)
    assert statistics.logit_kl(sure, np.array([[-np.inf, 0.0, 0.0]]))[0] == np.inf
    shifted = np.random.default_rng(0).normal(size=(1, 1000)) * 1e-9
    assert statistics.logit_kl(np.zeros((1, 1000)), shifted)[0] >= 0


def test_margin_change_is_of_the_references_likeliest_token():
    reference, other = np.array([[3.0, 1.0, 0.0], [0.0, 2.0, -1.0]]), np.array([[2.5, 1.5, 0.0], [4.0, 2.0, 1.0]])
    np.testing.assert_allclose(statistics.margin_change(reference, other), [1 - 2, -2 - 2])
    np.testing.assert_array_equal(statistics.margin_change(reference, reference), [0, 0])


def test_noise_floor_is_the_largest_of_the_random_resident_cells():
    rows = [
        row(),
        row(scheduler="random", accuracy_delta=-0.02, flips=3, logit_kl=0.5),
        row(scheduler="random", seed=1, accuracy_delta=0.01, flips=4, logit_kl=0.1),
        row(scheduler="greedy", accuracy_delta=-0.5, flips=90, logit_kl=9.0),
        row(scheduler="random", policy="expertflow", accuracy_delta=-0.5, flips=90, logit_kl=9.0),
        row(task="mmbench"),
    ]
    found = statistics.noise_floor(rows)
    assert found["vqa_v2"] == statistics.NoiseFloor(2, 0.02, 4, 0.5)
    assert found["mmbench"] == statistics.NoiseFloor(0, 0.0, 0, 0.0)
