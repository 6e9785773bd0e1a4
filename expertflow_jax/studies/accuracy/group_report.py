"""Groups in the report: a table and a plot of each task, all-resident accuracy beside what losses change.

Cells of different numbers of batches per block (M) stand apart.
"""

import dataclasses
from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

from expertflow_jax.harness.document import Block, Grid, Heading, Paragraph
from expertflow_jax.harness.looks import ordered
from expertflow_jax.harness.rows import CellRow
from expertflow_jax.studies.accuracy.groups import GroupScores
from expertflow_jax.studies.accuracy.tables import MISSING, block_sizes, percent, points
from expertflow_jax.studies.accuracy.wording import in_blocks

_MOST_DRAWN = 40  # groups of a plot, the largest


@dataclasses.dataclass(frozen=True)
class _Line:
    """A group of a task: the all-resident run's score, and what lossy cells of one M make of it.

    Attributes:
      questions: in the group; None of a score of the whole split.
      differences, flip_rates: of each of these cells; the latter as shares of the questions, empty where unknown.
    """

    group: str
    batches_per_block: int
    questions: int | None
    reference: float
    differences: Sequence[float]
    flip_rates: Sequence[float]


def _lines(rows: Sequence[CellRow], groups: Mapping[str, GroupScores]) -> list[_Line]:
    scored = [(row, groups[row.cell_id]) for row in rows if row.cell_id in groups]
    if not scored:
        return []
    first = scored[0][1]
    lossy = [(row, of) for row, of in scored if not row.lossless]
    lines = []
    for group, before in first.reference.items():
        questions = first.questions.get(group)
        for size in block_sizes(row for row, _ in lossy) or [1]:
            cells = [of for row, of in lossy if row.batches_per_block == size and group in of.scores]
            differences = [of.scores[group] - of.reference[group] for of in cells]
            flips = [of.flips[group] / questions for of in cells] if questions else []
            lines.append(_Line(group, size, questions, before, differences, flips))
    return lines


def group_blocks(rows: Sequence[CellRow], groups: Mapping[str, GroupScores]) -> list[Block]:
    """A table for each task: groups with the all-resident run's scores, and the ranges of what lossy cells change."""
    blocks: list[Block] = []
    for task in ordered(row.task for row in rows):
        lines = _lines([row for row in rows if row.task == task], groups)
        if len({line.group for line in lines}) > 1:  # more than the accuracy that every table has
            blocks += [Heading(3, task), _grid(lines)]
    if not blocks:
        return []
    about = Paragraph(
        "Scores of the all-resident run in order of arrival, and by how many points the cells that accept losses "
        "differ from it: lowest, mean and highest; then the share of questions whose answer those cells change, "
        "likewise. Small groups vary by chance; no claim rests on them. `groups.csv` has every cell."
    )
    return [Heading(2, "By group"), about, *blocks]


def _grid(lines: Sequence[_Line]) -> Grid:
    several = len({line.batches_per_block for line in lines}) > 1
    titles = ["group", *(["M"] if several else []), "questions", "all-resident %", "lowest", "mean", "highest"]
    titles += ["fewest changed %", "mean", "most"]
    rows, keys = [], []
    for line in lines:
        deltas, flips = _range(line.differences), _range(line.flip_rates)
        block = [str(line.batches_per_block)] if several else []
        rows.append([
            line.group, *block, MISSING if line.questions is None else str(line.questions), percent(line.reference),
            *(MISSING if value is None else points(value) for value in deltas),
            *(MISSING if value is None else percent(value) for value in flips),
        ])  # fmt: skip
        keys.append([line.group, *block, line.questions, line.reference, *deltas, *flips])
    return Grid(titles, rows, [False] + [True] * (len(titles) - 1), keys)


def _range(values: Sequence[float]) -> tuple[float | None, float | None, float | None]:
    return (min(values), sum(values) / len(values), max(values)) if values else (None, None, None)


def draw_groups(rows: Sequence[CellRow], groups: Mapping[str, GroupScores]) -> Figure | None:
    """The groups of one task: the all-resident run's score with the range of the lossy cells', and the range of the
    shares of questions whose answer these change; None without groups."""
    lines = [line for line in _lines(rows, groups) if line.questions is not None]
    lines = sorted(lines, key=lambda line: -(line.questions or 0))[:_MOST_DRAWN]
    lines.sort(key=lambda line: (line.group, line.batches_per_block), reverse=True)
    if not lines:
        return None
    figure = Figure(figsize=(12, 1.6 + 0.28 * len(lines)), layout="constrained")
    scores, flips = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
    for y, line in enumerate(lines):
        low, _, high = _range(line.differences)
        if low is not None and high is not None:
            ends = [100 * (line.reference + low), 100 * (line.reference + high)]
            scores.plot(ends, [y, y], color="#D55E00", lw=3, alpha=0.6, solid_capstyle="butt")
        scores.plot([100 * line.reference], [y], color="black", marker="o", ls="")
        fewest, mean, most = _range(line.flip_rates)
        if fewest is not None and mean is not None and most is not None:
            flips.plot([100 * fewest, 100 * most], [y, y], color="#0072B2", lw=3, alpha=0.6, solid_capstyle="butt")
            flips.plot([100 * mean], [y], color="#0072B2", marker="|", markersize=9, ls="")
    several = len({line.batches_per_block for line in lines}) > 1
    labels = [
        f"{line.group} ({line.questions}){in_blocks(line.batches_per_block) if several else ''}" for line in lines
    ]
    scores.set_yticks(range(len(lines)), labels)
    scores.set(xlabel="accuracy, %: all-resident (dot), cells that accept losses (bar)", xlim=(-2, 102))
    flips.set(xlabel="changed answers, %: those cells, and their mean", xlim=(-2, 102))
    return figure
