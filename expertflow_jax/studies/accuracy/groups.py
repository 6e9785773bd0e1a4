"""Accuracy by group: what each cell scores on answer types, question types and categories, kept and shown.

A cell's scores are one line of groups.jsonl, written before its row; groups.csv has a line per cell and group.
"""

import csv
import dataclasses
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from matplotlib.figure import Figure

from expertflow_jax.harness import row_file
from expertflow_jax.harness.document import Block, Grid, Heading, Paragraph
from expertflow_jax.harness.looks import ordered
from expertflow_jax.harness.rows import CellRow
from expertflow_jax.studies.accuracy.tables import MISSING, percent, points
from expertflow_jax.tasks.base import group_sizes

if TYPE_CHECKING:  # it imports models and tasks, seconds that reading result files can do without
    from expertflow_jax.harness.data import TaskData

GROUPS = "groups.jsonl"
_MOST_DRAWN = 40  # groups of a plot, the largest


@dataclasses.dataclass(frozen=True)
class GroupScores:
    """What `Task.aggregate` says of a cell.

    Attributes:
      scores: by name; "answer_type/number", and of the whole split "accuracy" and whatever else the task knows.
      reference: the same of the all-resident run in order of arrival.
      questions: how many each group has.
    """

    cell_id: str
    scores: Mapping[str, float]
    reference: Mapping[str, float]
    questions: Mapping[str, int]

    def __post_init__(self):
        for numbers in (self.scores, self.reference, self.questions):
            if not isinstance(numbers, Mapping) or not all(map(_finite, numbers.values())):
                raise ValueError("want a number for every group")
        if not isinstance(self.cell_id, str) or self.scores.keys() != self.reference.keys():
            raise ValueError("not the scores of a cell and its reference")
        "".join([self.cell_id, *self.scores, *self.questions]).encode()  # raises ValueError for what no file can hold

    @staticmethod
    def of(cell_id: str, data: "TaskData", texts: Sequence[str], reference: Sequence[str]) -> "GroupScores":
        """Aggregates a cell's answers and the reference's."""
        scores, before = (data.task.aggregate(data.examples, answers) for answers in (texts, reference))
        return GroupScores(cell_id, scores, before, group_sizes(data.examples))

    @staticmethod
    def from_json(value: Any) -> "GroupScores":
        """The scores of a line; raises ValueError or TypeError for another."""
        return GroupScores(**_PARSE(value))


_PARSE = row_file.with_keys(*(field.name for field in dataclasses.fields(GroupScores)))


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and abs(value) < math.inf


def read_groups(workdir: Path) -> dict[str, GroupScores]:
    """By cell id; of a cell that was killed and run again, what it scored last."""
    lines = row_file.read_rows(workdir / GROUPS, GroupScores.from_json)
    return {scores.cell_id: scores for scores in lines}


def to_csv(rows: Iterable[CellRow], groups: Mapping[str, GroupScores]) -> str:
    """A line per cell and name of a score."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    names = ("cell_id", "task", "policy", "scheduler", "miss_policy", "expert_dtype", "cache_fraction", "seed")
    writer.writerow([*names, "group", "questions", "score", "reference_score", "difference"])
    for row in rows:
        if row.cell_id not in groups:
            continue
        of = groups[row.cell_id]
        for group, score in of.scores.items():
            before = of.reference[group]
            known = [group, of.questions.get(group, row.num_examples), score, before, score - before]
            writer.writerow([*(getattr(row, name) for name in names), *known])
    return text.getvalue()


@dataclasses.dataclass(frozen=True)
class _Line:
    """A group of a task: the all-resident run's score, and how lossy cells differ from it."""

    group: str
    questions: int | None
    reference: float
    differences: Sequence[float]


def _lines(rows: Sequence[CellRow], groups: Mapping[str, GroupScores]) -> list[_Line]:
    known = [(row, groups[row.cell_id]) for row in rows if row.cell_id in groups]
    if not known:
        return []
    first = known[0][1]
    return [
        _Line(
            group,
            first.questions.get(group),
            before,
            [of.scores[group] - of.reference[group] for row, of in known if not row.lossless and group in of.scores],
        )
        for group, before in first.reference.items()
    ]


def group_blocks(rows: Sequence[CellRow], groups: Mapping[str, GroupScores]) -> list[Block]:
    """A table for each task: groups with the all-resident run's scores, and the range of lossy cells' differences."""
    blocks: list[Block] = []
    for task in ordered(row.task for row in rows):
        lines = _lines([row for row in rows if row.task == task], groups)
        if len(lines) > 1:  # more than the accuracy that every table has
            blocks += [Heading(3, task), _grid(lines)]
    if not blocks:
        return []
    about = Paragraph(
        "Scores of the all-resident run in order of arrival, and by how many points the cells that accept losses "
        "differ from it: lowest, mean and highest. Small groups vary by chance; no claim rests on them. `groups.csv` "
        "has every cell."
    )
    return [Heading(2, "By group"), about, *blocks]


def _grid(lines: Sequence[_Line]) -> Grid:
    titles = ["group", "questions", "all-resident %", "lowest", "mean", "highest"]
    rows, keys = [], []
    for line in lines:
        low, mean, high = _range(line.differences)
        rows.append([
            line.group, MISSING if line.questions is None else str(line.questions), percent(line.reference),
            *(MISSING if value is None else points(value) for value in (low, mean, high)),
        ])  # fmt: skip
        keys.append([line.group, line.questions, line.reference, low, mean, high])
    return Grid(titles, rows, [False, True, True, True, True, True], keys)


def _range(values: Sequence[float]) -> tuple[float | None, float | None, float | None]:
    return (min(values), sum(values) / len(values), max(values)) if values else (None, None, None)


def draw_groups(rows: Sequence[CellRow], groups: Mapping[str, GroupScores]) -> Figure | None:
    """The groups of one task: the all-resident run's score, and the range of the lossy cells'; None without groups."""
    lines = [line for line in _lines(rows, groups) if line.questions is not None]
    lines = sorted(lines, key=lambda line: -(line.questions or 0))[:_MOST_DRAWN]
    lines.sort(key=lambda line: line.group, reverse=True)
    if not lines:
        return None
    figure = Figure(figsize=(8, 1.4 + 0.28 * len(lines)), layout="constrained")
    ax = figure.subplots()
    for y, line in enumerate(lines):
        low, _, high = _range(line.differences)
        if low is not None and high is not None:
            ends = [100 * (line.reference + low), 100 * (line.reference + high)]
            ax.plot(ends, [y, y], color="#D55E00", lw=3, alpha=0.6, solid_capstyle="butt")
        ax.plot([100 * line.reference], [y], color="black", marker="o", ls="")
    ax.set_yticks(range(len(lines)), [f"{line.group} ({line.questions})" for line in lines])
    ax.set(xlabel="accuracy, %: all-resident (dot), cells that accept losses (bar)", xlim=(-2, 102))
    return figure
