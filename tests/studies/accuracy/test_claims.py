"""What a claim rests on: sign flips of whole clusters, intervals that cover, equivalence; under simulated nulls too."""

import itertools
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_up_rows import cached, row
from scipy import stats

from configs import study_base
from expertflow_jax.errors import InputError
from expertflow_jax.studies.accuracy import statistics
from expertflow_jax.studies.accuracy.claims import changes_accuracy, resolutions, verdicts
from expertflow_jax.studies.accuracy.intervals import PairedLimits
from expertflow_jax.studies.accuracy.runner import check

LOSSY = {"policy": "expertflow", "fraction": 0.5, "miss_policy": "drop"}


def scores_of(differences) -> tuple[np.ndarray, np.ndarray]:
    """Scores and reference in [0, 1] with these differences."""
    change = np.asarray(differences, float)
    reference = np.where(change < 0, 1.0, 0.0)
    return reference + change, reference


# the test


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 40), st.integers(0, 40), st.integers(0, 10))
def test_sign_flips_of_single_answers_are_mcnemars_exact_test(better, worse, same):
    scores, reference = scores_of([1] * better + [-1] * worse + [0] * (same + 1))
    found = statistics.sign_flip(scores, reference)
    assert found.p == pytest.approx(statistics.mcnemar(scores, reference).p, rel=1e-9)
    assert found.direction == np.sign(better - worse)
    assert found.exact


@pytest.mark.parametrize(("better", "worse"), [(14, 4), (0, 7), (30, 60)])
def test_mcnemar_by_others(better, worse):
    tables = pytest.importorskip("statsmodels.stats.contingency_tables")
    scores, reference = scores_of([1] * better + [-1] * worse + [0] * 20)
    theirs = tables.mcnemar([[0, better], [worse, 20]], exact=True).pvalue
    assert statistics.sign_flip(scores, reference).p == pytest.approx(theirs, rel=1e-9)


def test_holm_by_others():
    multitest = pytest.importorskip("statsmodels.stats.multitest")
    p = np.random.default_rng(0).random(64) ** 4
    np.testing.assert_allclose(statistics.holm(p), multitest.multipletests(p, method="holm")[1])


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(-10, 10), min_size=1, max_size=9), st.sampled_from([10, 30]))
def test_sign_flips_are_all_sign_patterns(tenths, parts):
    change = np.array(tenths) / parts
    found = statistics.sign_flip(*scores_of(change))
    patterns_PxN = np.array(list(itertools.product((-1, 1), repeat=len(change))))
    sums = np.abs(patterns_PxN @ np.array(tenths))
    assert found.p == pytest.approx(np.mean(sums >= abs(sum(tenths))))
    assert found.direction == np.sign(sum(tenths))


def test_sign_flips_are_scipys_where_scores_fit_no_grid():
    change = np.random.default_rng(0).uniform(-0.4, 0.6, size=12)
    found = statistics.sign_flip(*scores_of(change))
    theirs = stats.permutation_test((change,), np.sum, permutation_type="samples", n_resamples=np.inf)
    assert found.exact
    assert found.p == pytest.approx(theirs.pvalue)
    sampled = statistics.sign_flip(*scores_of(change), samples=4000, seed=1)
    assert not sampled.exact
    assert sampled.p == pytest.approx(found.p, abs=0.03)


def test_sampled_sign_flips_have_a_floor_that_holm_can_use():
    change = -np.random.default_rng(0).uniform(0.3, 0.9, size=40)
    found = statistics.sign_flip(*scores_of(change))
    assert not found.exact
    assert found.p >= 1 / (statistics.FLIP_SAMPLES + 1)
    assert found.p * 64 < 0.05
    assert found.direction == -1


def test_clusters_flip_as_one():
    change = np.repeat([-1, -1, -1, 1], 5)
    clusters = np.repeat(np.arange(4), 5)
    scores, reference = scores_of(change)
    assert statistics.sign_flip(scores, reference, clusters=clusters).p == pytest.approx(10 / 16)
    assert statistics.sign_flip(scores, reference).p < 0.05
    within = np.tile([1, -1], 5)  # what an image gains it loses again: nothing to flip
    scores, reference = scores_of(within)
    assert statistics.sign_flip(scores, reference, clusters=np.repeat(np.arange(5), 2)) == statistics.SignFlip(
        0, 1.0, True
    )


def test_a_test_that_says_better_backs_no_claim_of_loss():
    """14 of 18 questions gain a little, 4 lose all: McNemar counts a gain, the mean is a loss."""
    scores, reference = scores_of([0.1] * 14 + [-1.0] * 4)
    assert statistics.mcnemar(scores, reference).p < 0.05
    found = statistics.sign_flip(scores, reference)
    delta = statistics.paired_difference(scores, reference)
    assert delta.estimate < 0
    assert found.direction == -1
    assert found.p > 0.05
    effect = {"accuracy_delta": delta.estimate, "delta_ci_low": delta.low, "delta_ci_high": delta.high}
    assert changes_accuracy([row(), cached(**LOSSY, **effect, p_value=found.p, num_examples=18, units=18)]) == {}


def test_a_claim_needs_the_interval_on_the_side_of_the_difference():
    claim = {"accuracy_delta": -0.1, "p_value": 1e-6}
    for low, high, claimed in ((-0.2, -0.05, 1), (0.05, 0.2, 0), (-0.2, 0.0, 0), (-0.2, 0.1, 0)):
        rows = [row(), cached(**LOSSY, **claim, delta_ci_low=low, delta_ci_high=high)]
        assert len(changes_accuracy(rows)) == claimed
    gain = {"accuracy_delta": 0.1, "delta_ci_low": 0.05, "delta_ci_high": 0.2, "p_value": 1e-6}
    assert len(changes_accuracy([row(), cached(**LOSSY, **gain)])) == 1


# levels under nulls


def claims_under_null(draw, clusters: np.ndarray, studies: int, cells: int = 64) -> float:
    """Share of studies whose first step of Holm rejects anything. `draw(rng)` gives differences [N] of mean 0."""
    rng, claims = np.random.default_rng(0), 0
    for _ in range(studies):
        p = [statistics.sign_flip(*scores_of(draw(rng)), clusters=clusters).p for _ in range(cells)]
        claims += statistics.holm(p).min() < 0.05
    return claims / studies


IMAGES = np.repeat(np.arange(24), 5)


def images_that_move(rng: np.random.Generator, together: float) -> np.ndarray:
    """Three images in ten change; of their five questions each follows its image with this probability."""
    moves = (rng.random(24) < 0.3) * rng.choice([-1, 1], 24)
    follows = rng.random(120) < together
    return np.where(follows, np.repeat(moves, 5), 0)


def test_claims_stay_at_their_level_where_images_move_as_one():
    """64 cells of 24 images with 5 questions: McNemar's test claims something in nearly every such study."""
    assert claims_under_null(lambda rng: images_that_move(rng, 0.8), IMAGES, studies=30) <= 0.1
    rng = np.random.default_rng(1)
    careless = [statistics.mcnemar(*scores_of(images_that_move(rng, 0.8))).p for _ in range(64)]
    assert statistics.holm(careless).min() < 0.05


@pytest.mark.slow
@pytest.mark.parametrize("together", [0.5, 0.8, 1.0])
def test_claims_stay_at_their_level_in_many_studies(together):
    assert claims_under_null(lambda rng: images_that_move(rng, together), IMAGES, studies=400) <= 0.05


def test_one_test_has_its_level_where_few_lose_much_and_many_gain_little():
    """A fifth up by 0.3, six in a hundred down by 1: the means are equal, and the sign test rejects nearly always."""
    rng, rejected, careless = np.random.default_rng(0), 0, 0
    for _ in range(200):
        change = rng.choice([0.3, -1.0, 0.0], size=400, p=[0.2, 0.06, 0.74])
        rejected += statistics.sign_flip(*scores_of(change)).p < 0.05
        careless += statistics.mcnemar(*scores_of(change)).p < 0.05
    assert rejected / 200 <= 0.09
    assert careless / 200 > 0.9


# coverage


@cache
def limits(units: int, better: int, worse: int, confidence: float) -> tuple[float, float]:
    change = np.repeat([1.0, -1.0, 0.0], [better, worse, units - better - worse])
    return PairedLimits(change, np.ones(units), samples=2000, seed=0).limits(confidence)


def coverage(units: int, rate: float, worse: float, confidence: float) -> float:
    """Exact coverage of 0/1 differences: every outcome's interval, weighted by its probability."""
    truth, covered = rate * (1 - 2 * worse), 0.0
    for changed in range(int(stats.binom.ppf(1 - 1e-4, units, rate)) + 1):
        for lost in range(changed + 1):
            share = stats.binom.pmf(changed, units, rate) * stats.binom.pmf(lost, changed, worse)
            if share > 1e-5:
                low, high = limits(units, changed - lost, lost, confidence)
                covered += share * (low - 1e-12 <= truth <= high + 1e-12)
    return covered


@pytest.mark.parametrize("units", [34, 128])
@pytest.mark.parametrize("rate", [0.01, 0.03, 0.1])
@pytest.mark.parametrize("worse", [1.0, 0.75, 0.5], ids=["all worse", "most worse", "as many"])
def test_intervals_of_few_changes_cover(units, rate, worse):
    assert coverage(units, rate, worse, 0.95) >= 0.94
    if worse != 0.75:
        assert coverage(units, rate, worse, 0.90) >= 0.89


def test_intervals_of_clustered_credit_cover():
    """VQA's fractions, images of one to nine questions, some of which move together."""
    rng, covered, studies = np.random.default_rng(0), 0, 250
    sizes = np.arange(60) % 9 + 1
    images = np.repeat(np.arange(60), sizes)
    credit, share = np.array([-1.0, -0.3, 0.3, 0.6]), np.array([0.3, 0.3, 0.2, 0.2])
    for _ in range(studies):
        moved = (rng.random(60) < 0.3)[images] & (rng.random(len(images)) < 0.5)
        change = np.where(moved, rng.choice(credit, len(images), p=share), 0)
        delta = statistics.paired_difference(*scores_of(change), clusters=images, samples=500)
        covered += delta.low <= 0.15 * credit @ share <= delta.high
    assert covered / studies >= 0.93


# equivalence


def no_change(units: int) -> tuple[np.ndarray, np.ndarray]:
    return scores_of(np.zeros(units))


def test_equivalence_is_the_90_percent_interval_within_the_margin():
    for better, worse, units in ((0, 0, 280), (0, 0, 320), (2, 3, 1500), (0, 4, 900), (10, 12, 3000), (30, 30, 3000)):
        scores, reference = scores_of([1] * better + [-1] * worse + [0] * (units - better - worse))
        p = statistics.equivalence(scores, reference, 0.01)
        found = statistics.paired_difference(scores, reference, confidence=0.9, samples=statistics.EQUIVALENCE_SAMPLES)
        assert (p < 0.05) == (found.low > -0.01 and found.high < 0.01)


def test_equivalence_of_equal_scores_is_what_so_many_units_leave_open():
    assert statistics.equivalence(*no_change(500), 0.01) == pytest.approx(0.99**500, rel=2e-3)
    assert statistics.equivalence(*no_change(34), 0.2) == pytest.approx(0.8**34, rel=2e-3)
    assert statistics.equivalence(*no_change(34), 0.01) == 1
    images = np.repeat(np.arange(34), 5)
    clustered = statistics.equivalence(*no_change(170), 0.02, clusters=images)
    assert clustered > 0.49  # 34 images, not 170 questions
    assert statistics.equivalence(*no_change(100_000), 0.01) == 1 / (statistics.EQUIVALENCE_SAMPLES + 1)


def test_a_difference_beyond_the_margin_is_never_equivalent():
    assert statistics.equivalence(*scores_of([-1] * 40 + [0] * 960), 0.01) == 1


@pytest.mark.parametrize("margin", [0.0, 1.0, -0.01, float("nan")])
def test_a_margin_that_cannot_be_is_named(margin):
    with pytest.raises(InputError, match=r"0\.01 is one percentage point"):
        statistics.equivalence([1.0], [1.0], margin)


def test_a_study_with_a_bad_margin_is_refused():
    config = study_base.get_config()
    config.equivalence_margin = 1.0  # meant as one point
    with pytest.raises(InputError, match=r"config key equivalence_margin: 1\.0 .* 0\.01 is one point"):
        check(config)


@pytest.mark.parametrize("worse", [1.0, 0.9])
def test_equivalence_has_its_level_at_the_margin(worse):
    """Where the true loss is just the margin, at most one study in twenty rules it out: exact, over all outcomes."""
    units, margin = 1000, 0.01
    rate, rejected = margin / (2 * worse - 1), 0.0
    for changed in range(int(stats.binom.ppf(1 - 1e-4, units, rate)) + 1):
        for lost in range(changed + 1):
            share = stats.binom.pmf(changed, units, rate) * stats.binom.pmf(lost, changed, worse)
            if share > 1e-5:
                low, high = limits(units, changed - lost, lost, 0.9)
                rejected += share * (-margin < low and high < margin)
    assert rejected <= 0.055


# verdicts


def test_equivalence_is_adjusted_over_the_study_and_proofs_count_nothing():
    lossy = [cached(**LOSSY, seed=seed, equivalence_p=0.02) for seed in range(2)]
    assert [v.equivalent for v in verdicts([row(), *lossy])] == [True, True]  # twice 0.02
    three = [cached(**LOSSY, seed=seed, equivalence_p=0.02) for seed in range(3)]
    assert not any(v.equivalent for v in verdicts([row(), *three]))
    proofs = [cached(**LOSSY, seed=seed, equivalence_p=0.0) for seed in range(10, 14)]
    found = {v.row.seed: v for v in verdicts([row(), *lossy, *proofs])}
    assert found[0].equivalent
    assert not found[0].proved
    assert found[10].proved
    assert found[10].equivalent


def test_each_seed_counts_by_itself():
    effect = {"accuracy_delta": -0.1, "delta_ci_low": -0.2, "delta_ci_high": -0.05, "p_value": 0.02}
    one = [row(), cached(**LOSSY, **effect)]
    three = [row(), *(cached(**LOSSY, **effect, seed=seed) for seed in range(3))]
    assert len(changes_accuracy(one)) == 1
    assert changes_accuracy(three) == {}


def test_what_examples_can_show_counts_units():
    few, many = resolutions([row(task="mmbench", units=34), row(units=128)])
    assert (few.task, few.examples, few.units) == ("mmbench", 128, 34)
    assert (few.unseen, many.unseen) == pytest.approx((0.0843, 0.0231), abs=5e-5)
    assert few.units_for_margin == many.units_for_margin == 299
    assert 0.99**299 < 0.05 < 0.99**298
