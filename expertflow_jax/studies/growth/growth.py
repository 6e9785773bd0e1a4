"""How fast something grows with something else: the slope of a straight line through logarithms."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from scipy import stats


@dataclasses.dataclass(frozen=True)
class Growth:
    """y is proportional to x ** exponent; `low` and `high` bound the exponent with 95 % confidence."""

    exponent: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.exponent:+.2f} [{self.low:+.2f}, {self.high:+.2f}]"


def growth(x: Sequence[float], y: Sequence[float]) -> Growth | None:
    """Least squares on logarithms, normal errors; None with fewer than three points or anything not positive."""
    if len(x) < 3 or min(*x, *y) <= 0:
        return None
    fit = stats.linregress(np.log(x), np.log(y))
    half = stats.t.ppf(0.975, len(x) - 2) * fit.stderr
    return Growth(fit.slope, fit.slope - half, fit.slope + half)
