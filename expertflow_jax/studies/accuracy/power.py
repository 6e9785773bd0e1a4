"""What a study can show before it starts: the least difference in accuracy that so many examples make visible.

A paired design: each independent unit's score stays, falls or rises. `changed` is the share of units whose score
changes at all, which has to be assumed. The test is the one that claims rest on, of signs (`statistics.sign_flip`; with
one question per unit McNemar's exact test), so its power is worked out exactly, not from a normal approximation.
Axes: D numbers of changed units.
"""

from collections.abc import Sequence

import numpy as np
from scipy import stats

from expertflow_jax.errors import InputError

POWER, ALPHA = 0.8, 0.05
CHANGED = (0.02, 0.1, 0.3)  # shares of changed scores that a study's line is for: careful losses to naive ones
_TAIL = 1e-9  # probability of so few or many changed units that they are left out


def power_of(difference: float, units: int, changed: float, alpha: float = ALPHA) -> float:
    """Probability that the two-sided exact test of signs shows a mean difference in accuracy.

    Args:
      difference: in (0, changed]: share of units that lose, less the share that gain.
      units: independent units.
      changed: share of units whose score changes.
    """
    low, high = stats.binom.ppf([_TAIL, 1 - _TAIL], units, changed)
    changed_D = np.arange(int(low), int(high) + 1)
    most_D = stats.binom.ppf(alpha / 2, changed_D, 0.5)  # of the rarer direction, at which the test still rejects
    most_D = most_D - (stats.binom.cdf(most_D, changed_D, 0.5) > alpha / 2)
    loses = (1 + difference / changed) / 2  # share of the changed units
    rejects_D = stats.binom.cdf(most_D, changed_D, loses) + stats.binom.sf(changed_D - most_D - 1, changed_D, loses)
    return float((stats.binom.pmf(changed_D, units, changed) * rejects_D).sum())


def least_difference(units: int, changed: float, alpha: float = ALPHA, power: float = POWER) -> float | None:
    """The least difference in accuracy that is shown with this probability; None if no difference is.

    A difference cannot exceed the share of changed scores: where it would have to, all of them are taken to be losses,
    and as many of them as it needs.

    Raises:
      InputError: no unit, or shares outside (0, 1).
    """
    if units < 1 or not all(0 < share < 1 for share in (changed, alpha, power)):
        raise InputError(f"power: {units} units, {changed} changed, {alpha}, {power}; want units and shares in (0, 1)")

    def enough(difference: float) -> bool:
        return power_of(difference, units, max(changed, difference), alpha) >= power

    low, high = 0.0, 1.0
    if not enough(high):
        return None
    while high - low > 1e-5:
        middle = (low + high) / 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def power_line(task: str, examples: int, units: int, lossy_cells: int, changed: Sequence[float] = CHANGED) -> str:
    """What a study says of a task before it starts."""
    start = f"power {task}: {examples} examples in {units} independent units"
    test = f"difference in accuracy, paired, at {100 * POWER:g}% power and {100 * ALPHA:g}%"
    least = {share: least_difference(units, share) for share in changed}
    if None in least.values():
        return f"{start} can show no {test}, however large"
    clauses = []
    for share, alone in least.items():
        clause = f"{_points(alone)} if {100 * share:g}% of scores change"
        if lossy_cells > 1:
            clause += f" ({_points(least_difference(units, share, ALPHA / lossy_cells))})"
        clauses.append(clause)
    holm = f"; in brackets with Holm's adjustment over {lossy_cells} lossy cells, at worst" if lossy_cells > 1 else ""
    return f"{start} show a {test}, from {', '.join(clauses)}{holm}"


def _points(difference: float | None) -> str:
    return "none" if difference is None else f"{100 * difference:.1f} points"
