"""The least difference that so many examples show, beside a simulation of the test itself and a textbook formula."""

import numpy as np
import pytest
from scipy import stats

from expertflow_jax.errors import InputError
from expertflow_jax.studies.accuracy.power import least_difference, power_line, power_of
from expertflow_jax.studies.accuracy.statistics import sign_flip


@pytest.mark.parametrize(("units", "changed", "difference"), [(119, 0.3, 0.16), (300, 0.1, 0.06), (33, 0.5, 0.4)])
def test_the_power_is_that_of_the_test_on_drawn_scores(units, changed, difference):
    random = np.random.default_rng(0)
    shares = [(changed + difference) / 2, (changed - difference) / 2, 1 - changed]
    shown = 0
    for losses, gains, _ in random.multinomial(units, shares, size=600):
        before = np.repeat([1.0, 0.0, 1.0], [losses, gains, units - losses - gains])
        after = np.repeat([0.0, 1.0, 1.0], [losses, gains, units - losses - gains])
        shown += sign_flip(after, before).p <= 0.05
    assert shown / 600 == pytest.approx(power_of(difference, units, changed), abs=0.05)


@pytest.mark.parametrize(("units", "changed"), [(20_000, 0.02), (214_354, 0.1), (5_000, 0.3)])
def test_with_many_units_it_is_what_the_normal_approximation_says(units, changed):
    """Connor, Biometrics 43 (1987): n = (z_a sqrt(c) + z_b sqrt(c - d^2))^2 / d^2 for a share c of changed pairs."""
    difference = least_difference(units, changed)
    z_alpha, z_beta = stats.norm.ppf([0.975, 0.8])
    needed = ((z_alpha * changed**0.5 + z_beta * (changed - difference**2) ** 0.5) / difference) ** 2
    assert needed == pytest.approx(units, rel=0.06)


def test_it_is_the_least():
    difference = least_difference(119, 0.1)
    assert power_of(difference, 119, max(0.1, difference)) >= 0.8
    smaller = difference - 0.01
    assert power_of(smaller, 119, max(0.1, smaller)) < 0.8


def test_more_units_fewer_changes_and_fewer_cells_show_smaller_differences():
    assert least_difference(1000, 0.1) < least_difference(100, 0.1)
    assert least_difference(1000, 0.02) < least_difference(1000, 0.3)
    assert least_difference(1000, 0.1) < least_difference(1000, 0.1, 0.05 / 66)
    assert least_difference(100, 0.001) == pytest.approx(least_difference(100, 0.01))  # all changes are losses, then
    assert least_difference(5, 0.5) is None  # 5 of 5 have p = 1/16


def test_the_line_states_what_is_assumed():
    line = power_line("vqa_v2", 128, 119, 66)
    assert line.startswith("power vqa_v2: 128 examples in 119 independent units")
    assert "80% power and 5%" in line
    assert "if 2% of scores change" in line
    assert "over 66 lossy cells" in line
    assert "lossy" not in power_line("vqa_v2", 128, 119, 1)
    assert "in 4 independent units can show no difference in accuracy" in power_line("vqa_v2", 4, 4, 0)


def test_bad_numbers_are_refused():
    with pytest.raises(InputError, match="0 units"):
        least_difference(0, 0.1)
    with pytest.raises(InputError, match=r"1\.5 changed"):
        least_difference(10, 1.5)
