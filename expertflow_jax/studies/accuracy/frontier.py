"""What speed can be had for less than the margin? Careful ways to lose, beside naive ones and controls.

A *way* is a cache policy with a miss policy (or quantised experts) at one cache size and one number of batches per
block (M), over all tasks of a study. It is
*within* the margin if the accuracy of no task falls by the margin or more; that equivalence is *shown* is more, and
decided in `claims`. One way dominates another of its size and M if it is no slower and no worse on every task, and
better on one.
"""

import dataclasses
from collections.abc import Sequence

from expertflow_jax.harness.document import Block, Bullets, Grid, Paragraph
from expertflow_jax.harness.looks import ordered
from expertflow_jax.harness.rows import CellRow
from expertflow_jax.models.expert_dtypes import BITS
from expertflow_jax.studies.accuracy.claims import Verdict, verdicts
from expertflow_jax.studies.accuracy.tables import MISSING, block_sizes, points
from expertflow_jax.studies.accuracy.wording import clock_note, in_blocks, margin, span

CONTROLS = ("drop", "substitute", "fewer_experts", *BITS)
BLIND = "_blind"  # what the name of a task without images ends in


@dataclasses.dataclass(frozen=True)
class Way:
    """One way to lose accuracy for speed.

    Attributes:
      cells: of each task and seed, all compared with waiting.
    """

    cells: Sequence[Verdict]

    @property
    def row(self) -> CellRow:
        """One of the cells, for the names that they share."""
        return self.cells[0].row

    @property
    def family(self) -> str:
        """The miss policy without options, or the experts' dtype."""
        return self.row.losses.partition("(")[0]

    @property
    def speeds(self) -> list[float]:
        """Tokens per second over those of waiting, of each cell."""
        return [cell.speed_up or 0.0 for cell in self.cells]

    @property
    def deltas(self) -> list[float]:
        """Differences in accuracy, of each cell."""
        return [cell.row.accuracy_delta for cell in self.cells]

    @property
    def within(self) -> bool:
        """Whether no cell loses the margin or more, as measured."""
        return all(cell.row.accuracy_delta > -cell.row.equivalence_margin for cell in self.cells)

    @property
    def shown(self) -> int:
        """In how many cells equivalence is shown."""
        return sum(cell.equivalent for cell in self.cells)

    @property
    def refuted(self) -> int:
        """In how many cells a change of accuracy is shown."""
        return sum(cell.differs for cell in self.cells)


def ways(rows: Sequence[CellRow]) -> list[Way]:
    """All ways that can be compared with waiting, in the order of tables."""
    groups: dict[tuple, list[Verdict]] = {}
    for verdict in verdicts(rows):
        row = verdict.row
        if verdict.speed_up is not None:
            key = (row.policy, row.scheduler, row.losses, *size_of(row))
            groups.setdefault(key, []).append(verdict)
    return [Way(cells) for cells in groups.values()]


def size_of(row: CellRow) -> tuple[str, int]:
    """The size as the config names it, and M."""
    return row.size, row.batches_per_block


def sizes(candidates: Sequence[Way]) -> list[tuple[str, int]]:
    """Their sizes, fractions before budgets, from the smallest up."""
    first: dict[tuple[str, int], CellRow] = {}
    for way in candidates:
        first.setdefault(size_of(way.row), way.row)
    return sorted(first, key=lambda size: ("B" in size[0], first[size].memory_budget_bytes, size[1]))


def dominated(way: Way, others: Sequence[Way]) -> bool:
    """Whether another way of the same size is no slower and no worse anywhere, and better somewhere."""
    scores = _scores(way)
    for other in others:
        theirs = _scores(other)
        if other is way or size_of(other.row) != size_of(way.row) or theirs.keys() != scores.keys():
            continue
        pairs = [pair for key in scores for pair in zip(theirs[key], scores[key], strict=True)]
        if all(a >= b for a, b in pairs) and any(a > b for a, b in pairs):
            return True
    return False


def _scores(way: Way) -> dict[tuple, tuple[float, float]]:
    """(tokens per second, difference in accuracy) by task and seed; speeds of two cache policies compare as such."""
    cells = [cell.row for cell in way.cells]
    return {(row.task, row.seed): (row.tokens_per_second or 0.0, row.accuracy_delta) for row in cells}


def fastest_within(candidates: Sequence[Way]) -> Way | None:
    """Of the ways within the margin, the one whose slowest cell gains most; None if there is none."""
    return max((way for way in candidates if way.within), key=lambda way: min(way.speeds), default=None)


def frontier(rows: Sequence[CellRow]) -> list[Block]:
    """Sentences and a table; nothing where a study has no careful way to lose."""
    all_ways = ways(rows)
    families = ordered(way.family for way in all_ways)
    if not any(family not in CONTROLS for family in families):
        return []
    allowed = margin({row.equivalence_margin for row in rows})
    sentences = [_sentence([way for way in all_ways if way.family == family]) for family in families]
    several = len(block_sizes(way.row for way in all_ways)) > 1
    blocks_title = ["M"] if several else []
    titles = ["losses", "policy", "scheduler", *blocks_title, "size", "speed", "difference", "shown"]
    titles += ["dominated", "mass lost"]
    lines = [_line(way, dominated(way, all_ways), several) for way in all_ways]
    blocks: list[Block] = [
        Paragraph(
            f"The most speed over waiting, with the same cache policy and size, of each way to lose less than "
            f"{allowed} on every task{clock_note(rows)}. `shown` counts the tasks on which equivalence is proved at "
            "that margin, after adjustment; elsewhere it is only not refuted. Sizes are slots / experts, where "
            "quantised experts take less memory, or budgets for everything on the device, where they get more slots."
        ),
        Bullets(sentences),
    ]
    if seeing := _seeing(rows, all_ways):
        blocks.append(Paragraph(seeing))
    return [*blocks, Grid(titles, lines, [False] * 3 + [True] * (4 + several) + [False, True])]


def _sentence(candidates: Sequence[Way]) -> str:
    family = candidates[0].family
    control = " (control)" if family in CONTROLS else ""
    clauses = []
    for size in sizes(candidates):
        best = fastest_within([way for way in candidates if size_of(way.row) == size])
        place = f"at {size[0]}{in_blocks(size[1])}"
        clauses.append(f"{place} {_clause(best) if best else 'nothing within the margin'}")
    return f"`{family}`{control}: {'; '.join(clauses)}."


def _clause(way: Way) -> str:
    if way.shown:
        claim = f"equivalence shown in {way.shown} of {len(way.cells)}"
    else:
        claim = "equivalence not refuted, not shown" if not way.refuted else f"a change shown in {way.refuted}"
    return f"**{span(way.speeds)}** as `{way.row.losses}` with `{way.row.policy}`, {_deltas(way)} points, {claim}"


def _deltas(way: Way) -> str:
    low, high = points(min(way.deltas)), points(max(way.deltas))
    return low if low == high else f"{low} to {high}"


def _line(way: Way, is_dominated: bool, with_blocks: bool) -> list[str]:
    rows = [cell.row for cell in way.cells]
    return [
        way.row.losses,
        way.row.policy,
        way.row.scheduler,
        *([str(way.row.batches_per_block)] if with_blocks else []),
        way.row.size,
        span(way.speeds),
        "; ".join(
            f"{points(row.accuracy_delta)} [{points(row.delta_ci_low)}, {points(row.delta_ci_high)}]" for row in rows
        ),
        f"{way.shown} of {len(rows)}",
        "yes" if is_dominated else MISSING,
        span((100 * row.discarded_mass for row in rows), "{:.1f}%"),
    ]


def _seeing(rows: Sequence[CellRow], all_ways: Sequence[Way]) -> str:
    """What seeing is worth on each task, and the largest loss within the margin as a share of it."""
    clauses = []
    blind = {row.task.removesuffix(BLIND): row for row in rows if row.task.endswith(BLIND)}
    for task, row in sorted(blind.items()):
        seen = [cell.row for way in all_ways if way.within for cell in way.cells if cell.row.task == task]
        if not seen or seen[0].reference_accuracy <= row.accuracy:
            continue
        worth, worst = seen[0].reference_accuracy - row.accuracy, max(-r.accuracy_delta for r in seen)
        clauses.append(
            f"{task}: {100 * row.accuracy:.1f}% without seeing, {100 * seen[0].reference_accuracy:.1f}% with; the "
            f"largest loss within the margin is {max(0.0, 100 * worst / worth):.1f}% of that difference"
        )
    return "; ".join(clauses) + "." if clauses else ""
