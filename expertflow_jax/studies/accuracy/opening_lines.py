"""What a study says before its first cell: what it can show, and which files it cannot write."""

from collections.abc import Sequence

from expertflow_jax.studies.accuracy.grid import Cell
from expertflow_jax.studies.accuracy.power import power_line
from expertflow_jax.studies.accuracy.preparation import Questions
from expertflow_jax.tasks.base import optional


def opening_lines(asked: Questions, todo: Sequence[Cell], num_examples: int) -> list[str]:
    """One line per task on the least difference that it can show, and one for each kind of file that is left out.

    Args:
      num_examples: per task, 0 for all; circular tasks keep whole questions.

    Texts, whose sequences are not cut yet, and splits without public answers have no line on power.
    """
    lines = []
    for name, (task, questions) in asked.items():
        examples = questions if task.circular or not num_examples else questions[:num_examples]
        if not task.teacher_forced and optional(task, "scored") and examples:
            lossy = sum(cell.task == name and not cell.lossless for cell in todo)
            lines.append(power_line(name, len(examples), len({example.cluster for example in examples}), lossy))
        if unwritten := optional(task, "unwritten"):
            lines.append(f"{name}: {unwritten}")
    return lines
