"""What a trained model answers on a benchmark's held-out files, by the official scorers."""

from collections.abc import Sequence
from itertools import batched
from pathlib import Path

from expertflow_jax.api import OffloadedModel
from expertflow_jax.tasks.registry import make_task


def official_accuracies(export: Path, data_dir: Path, tasks: Sequence[str], batch_size: int) -> dict[str, float]:
    """Answers the tasks' val splits greedily with an exported checkpoint, all experts resident.

    Args:
      export: checkpoint directory.
      data_dir: holds the benchmark files.
      batch_size: sequences answered at once.

    Returns:
      Each task's accuracy in [0, 1].
    """
    accuracies = {}
    with OffloadedModel.from_pretrained(
        str(export), policy="resident", dtype="float32", max_batch_size=batch_size, max_tokens=128
    ) as model:
        for name in tasks:
            task = make_task(name, data_dir, "val")
            examples = task.examples()
            predictions: list[str] = []
            for some in batched(examples, batch_size):
                answers = model.generate(
                    [example.messages for example in some],
                    [example.image for example in some],
                    max_new_tokens=max(example.max_new_tokens for example in some),
                )
                predictions += [answer.text for answer in answers]
            accuracies[name] = task.aggregate(examples, predictions)["accuracy"]
    return accuracies
