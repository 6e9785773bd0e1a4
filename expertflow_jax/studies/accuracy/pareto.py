"""Accuracy against throughput of all cells of a study: which are not beaten in both by another of their task and size.

Lossless cells and ways to lose stand beside each other here, batch by batch or in blocks (M batches each). Policies
that know the routing are left out: nothing can run them.
"""

import dataclasses
from collections.abc import Sequence

from expertflow_jax.harness.document import Block, Grid, Paragraph
from expertflow_jax.harness.looks import ordered
from expertflow_jax.harness.rows import CellRow
from expertflow_jax.studies.accuracy.claims import Verdict, verdicts
from expertflow_jax.studies.accuracy.frontier import CONTROLS, size_of
from expertflow_jax.studies.accuracy.points import Point, points_of
from expertflow_jax.studies.accuracy.tables import block_sizes, percent
from expertflow_jax.studies.accuracy.wording import clock_note, count


@dataclasses.dataclass(frozen=True)
class Place:
    """The cells of one task and size; `front` are those that no other beats, the slowest first."""

    task: str
    size: str
    points: Sequence[Point]
    front: Sequence[Point]


def is_control(row: CellRow) -> bool:
    """Whether the cell loses in a naive way, for comparison."""
    return not row.lossless and row.losses.partition("(")[0] in CONTROLS


def places(rows: Sequence[CellRow]) -> list[Place]:
    """One per task and size with lossless and lossy cells; none where nothing but controls stands beside the lossless
    cells of one M, which the plot of losses shows."""
    lossy = [row for row in rows if not row.lossless]
    if all(is_control(row) for row in lossy) and len(block_sizes(r for r in rows if r.policy != "resident")) < 2:
        return []
    everywhere = []
    for task in ordered(row.task for row in rows):
        cells = [row for row in rows if row.task == task and row.forecast != "truth" and row.policy != "resident"]
        for size in dict.fromkeys(size_of(row)[0] for row in sorted(cells, key=lambda row: row.slots)):
            here = [row for row in cells if size_of(row)[0] == size]
            if {row.lossless for row in here} == {True, False}:
                points = points_of(here)
                everywhere.append(Place(task, size, points, front(points)))
    return everywhere


def front(points: Sequence[Point]) -> list[Point]:
    """Those that no other one equals in both and beats in one, the slowest first."""
    best = [point for point in points if not any(_beats(other, point) for other in points)]
    return sorted(best, key=lambda point: point.tokens_per_second)


def _beats(other: Point, point: Point) -> bool:
    theirs, ours = ((p.tokens_per_second, float(p.accuracy[0])) for p in (other, point))
    return theirs[0] >= ours[0] and theirs[1] >= ours[1] and theirs != ours


def pareto(rows: Sequence[CellRow]) -> list[Block]:
    """A sentence and a table of the fronts."""
    everywhere = places(rows)
    if not everywhere:
        return []
    lossless = [place for place in everywhere if place.front[-1].row.lossless]
    judged = {verdict.row.cell_id: verdict for verdict in verdicts(rows)}
    text = (
        "Cells that no other one of their task and size beats in accuracy and in tokens per second, the slowest first"
        f"{clock_note(rows)}. In **{len(lossless)} of {count(len(everywhere), 'place')}** the fastest of all is "
        "lossless: there nothing is to be gained from losses. A higher accuracy than the all-resident run's may be "
        "chance; the last column says what is shown. More batches per block (M) take more memory at the same size."
    )
    titles = [
        "size",
        "task",
        "policy",
        "scheduler",
        "losses",
        "M",
        "tokens/s",
        "accuracy % [95%]",
        "against all-resident",
    ]
    lines = [
        [
            *(place.size, place.task, point.row.policy, point.row.scheduler, point.row.losses),
            *(str(point.row.batches_per_block), f"{point.tokens_per_second:.0f}"),
            f"{percent(point.accuracy[0])} [{percent(point.accuracy[1])}, {percent(point.accuracy[2])}]",
            _shown(point, judged),
        ]
        for place in everywhere
        for point in place.front
    ]
    return [Paragraph(text), Grid(titles, lines, [True, False, False, False, False, True, True, True, False])]


def _shown(point: Point, judged: dict[str, Verdict]) -> str:
    """What is claimed of the cells at this place."""
    if point.row.lossless:
        return "same bits" if all(row.bit_identical for row in point.rows) else "not the same bits"
    claims = [judged[row.cell_id] for row in point.rows]
    if all(claim.equivalent for claim in claims):
        return "no impact shown"
    if any(claim.differs for claim in claims):
        return "loses" if point.delta[0] < 0 else "gains"
    return "neither shown"
