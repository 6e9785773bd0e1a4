"""What may be claimed of a study's lossy cells, as numbers; `findings` puts them into words. (DESIGN section 10.)

A loss or a gain in accuracy is claimed only if three things hold: the sign-flip test of whole clusters, adjusted by
Holm over all lossy cells, is below `ALPHA`; the paired interval lies on the side that the difference, and so the test,
points to; and the difference exceeds the noise floor. That there is no impact is claimed only if the two one-sided
tests against the study's margin, adjusted likewise, are below `ALPHA`, or by proof: every logit is the reference's.
"""

import dataclasses
import math
from collections.abc import Sequence

from expertflow_jax.harness.looks import ordered
from expertflow_jax.harness.rows import CellRow
from expertflow_jax.studies.accuracy.statistics import holm, noise_floor
from expertflow_jax.studies.accuracy.tables import Comparisons, in_order

ALPHA = 0.05


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What is claimed of one lossy cell.

    Attributes:
      p, equivalence_p: of the row, adjusted by Holm over the study's lossy cells.
      differs: a loss or gain is claimed; `row.accuracy_delta` says which.
      equivalent: a difference of the margin or more is ruled out.
      speed_up: tokens per second over those of waiting with the same policy, scheduler and size, if that was run.
      fewer_bytes: how many times fewer bytes moved than then.
    """

    row: CellRow
    p: float
    equivalence_p: float
    differs: bool
    equivalent: bool
    speed_up: float | None
    fewer_bytes: float | None

    @property
    def proved(self) -> bool:
        """Whether equivalence needs no test: every logit equals the reference's, bit for bit."""
        return self.row.equivalence_p == 0

    @property
    def open(self) -> bool:
        """Whether neither an impact nor its absence is shown."""
        return not self.differs and not self.equivalent


def verdicts(rows: Sequence[CellRow]) -> list[Verdict]:
    """One verdict per lossy cell, in the order of tables."""
    lossy = in_order(row for row in rows if not row.lossless)
    floors, compare = noise_floor(rows), Comparisons(rows)
    adjusted = holm([row.p_value for row in lossy])
    equivalence = holm([row.equivalence_p for row in lossy])
    return [
        Verdict(
            row,
            float(p),
            float(equivalence_p),
            p < ALPHA and _interval_agrees(row) and abs(row.accuracy_delta) > floors[row.task].accuracy,
            equivalence_p < ALPHA,
            compare.speed_up(row, policy=row.policy, scheduler=row.scheduler),
            _fewer_bytes(compare, row),
        )
        for row, p, equivalence_p in zip(lossy, adjusted, equivalence, strict=True)
    ]


def changes_accuracy(rows: Sequence[CellRow]) -> dict[str, float]:
    """Lossy cells whose accuracy differs from the reference's as this file claims it, with their adjusted p."""
    return {verdict.row.cell_id: verdict.p for verdict in verdicts(rows) if verdict.differs}


def _interval_agrees(row: CellRow) -> bool:
    """Whether the interval says loss where the difference is one, and gain where it is one."""
    return row.delta_ci_high < 0 if row.accuracy_delta < 0 else row.accuracy_delta > 0 and row.delta_ci_low > 0


def _fewer_bytes(compare: Comparisons, row: CellRow) -> float | None:
    waiting = compare.same_size(row, policy=row.policy, scheduler=row.scheduler)
    return waiting.bytes_transferred / row.bytes_transferred if waiting and row.bytes_transferred else None


@dataclasses.dataclass(frozen=True)
class Resolution:
    """What the examples of one task can show at most.

    Attributes:
      examples, units: answered, and the independent clusters that they fall into.
      accuracy, difference: half the width of the widest 95% interval of an accuracy, and of a paired difference.
      unseen: share of other units that may change although none of these did, at 95% confidence.
      margin: of equivalence.
      units_for_margin: how few units could show it, if no score of any changed, before adjustment.
    """

    task: str
    examples: int
    units: int
    accuracy: float
    difference: float
    unseen: float
    margin: float
    units_for_margin: int


def resolutions(rows: Sequence[CellRow]) -> list[Resolution]:
    """One per task. Where cells differ in their examples, the most is taken, and the widest margin."""
    return [_resolution([row for row in rows if row.task == task]) for task in ordered(row.task for row in rows)]


def _resolution(rows: Sequence[CellRow]) -> Resolution:
    units, margin = max(row.units for row in rows), max(row.equivalence_margin for row in rows)
    return Resolution(
        rows[0].task,
        max(row.num_examples for row in rows),
        units,
        max((row.accuracy_ci_high - row.accuracy_ci_low) / 2 for row in rows),
        max((row.delta_ci_high - row.delta_ci_low) / 2 for row in rows),
        1 - ALPHA ** (1 / units),
        margin,
        math.ceil(math.log(ALPHA) / math.log(1 - margin)),
    )
