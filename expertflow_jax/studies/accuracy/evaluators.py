"""By whose rules answers were scored: the evaluators with their versions, and what each makes of the cells."""

from collections.abc import Sequence

from expertflow_jax.harness.document import Block, Grid, Heading, Paragraph
from expertflow_jax.harness.looks import ordered
from expertflow_jax.harness.rows import CellRow
from expertflow_jax.studies.accuracy.tables import MISSING, percent, points

_ABOUT = (
    "Every accuracy above is by the first evaluator named here. A second one scores the same answers where published "
    "numbers follow either: all-resident accuracy by its rule, and its widest difference between a cell and the "
    "all-resident run. An evaluator without a judge reads answers by rules alone."
)


def evaluator_blocks(rows: Sequence[CellRow]) -> list[Block]:
    """One line per task and evaluator."""
    lines = []
    for task in ordered(row.task for row in rows):
        cells = [row for row in rows if row.task == task]
        first = cells[0]
        lines.append(_line(task, first.evaluator, first.reference_accuracy, [row.accuracy_delta for row in cells]))
        if first.second_evaluator is not None and first.second_reference_accuracy is not None:
            pairs = [(row.second_accuracy, row.second_reference_accuracy) for row in cells]
            deltas = [after - before for after, before in pairs if after is not None and before is not None]
            lines.append(_line(task, first.second_evaluator, first.second_reference_accuracy, deltas))
    if not lines:
        return []
    grid = Grid(["task", "evaluator", "all-resident %", "widest difference"], lines, [False, False, True, True])
    return [Heading(2, "Evaluators"), Paragraph(_ABOUT), grid]


def _line(task: str, evaluator: str, reference: float, differences: Sequence[float]) -> list[str]:
    widest = max(differences, key=abs, default=None)
    return [task, evaluator, percent(reference), MISSING if widest is None else points(widest)]
