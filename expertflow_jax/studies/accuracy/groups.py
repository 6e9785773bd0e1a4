"""Accuracy by group: what each cell scores on answer types, question types and categories, and which answers change.

A cell's scores are one line of groups.jsonl, written before its row; groups.csv has a line per cell and group.
"""

import csv
import dataclasses
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from expertflow_jax.harness import row_file
from expertflow_jax.harness.rows import CellRow
from expertflow_jax.tasks.base import group_flips, group_sizes

if TYPE_CHECKING:  # it imports models and tasks, seconds that reading result files can do without
    from expertflow_jax.harness.data import TaskData

GROUPS = "groups.jsonl"


@dataclasses.dataclass(frozen=True)
class GroupScores:
    """What `Task.aggregate` says of a cell.

    Attributes:
      scores: by name; "answer_type/number", and of the whole split "accuracy" and whatever else the task knows.
      reference: the same of the all-resident run in order of arrival.
      questions: how many each group has.
      flips: how many of these have another answer than that run's.
    """

    cell_id: str
    scores: Mapping[str, float]
    reference: Mapping[str, float]
    questions: Mapping[str, int]
    flips: Mapping[str, int]

    def __post_init__(self):
        for numbers in (self.scores, self.reference, self.questions, self.flips):
            if not isinstance(numbers, Mapping) or not all(map(_finite, numbers.values())):
                raise ValueError("want a number for every group")
        if not isinstance(self.cell_id, str) or self.scores.keys() != self.reference.keys():
            raise ValueError("not the scores of a cell and its reference")
        if self.questions.keys() != self.flips.keys():
            raise ValueError("not the sizes of groups and what changes in them")
        "".join([self.cell_id, *self.scores, *self.questions]).encode()  # raises ValueError for what no file can hold

    @staticmethod
    def of(cell_id: str, data: "TaskData", texts: Sequence[str], reference: Sequence[str]) -> "GroupScores":
        """Aggregates a cell's answers and the reference's."""
        scores, before = (data.task.aggregate(data.examples, answers) for answers in (texts, reference))
        flips = group_flips(data.examples, texts, reference)
        return GroupScores(cell_id, scores, before, group_sizes(data.examples), flips)

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
    names = ["cell_id", "task", "policy", "scheduler", "miss_policy", "expert_dtype", "cache_fraction", "seed"]
    names.append("batches_per_block")
    writer.writerow([*names, "group", "questions", "score", "reference_score", "difference", "flips"])
    for row in rows:
        if row.cell_id not in groups:
            continue
        of = groups[row.cell_id]
        for group, score in of.scores.items():
            before = of.reference[group]
            known = [group, of.questions.get(group, row.num_examples), score, before, score - before]
            known.append(of.flips.get(group, row.flips))
            writer.writerow([*(getattr(row, name) for name in names), *known])
    return text.getvalue()
