"""What a trained model answers on the held-out benchmark files, by the official scorers, beside blind guessing."""

from itertools import batched
from pathlib import Path

from expertflow_jax.api import OffloadedModel
from expertflow_jax.tasks.digit_scenes.baselines import blind_accuracies
from expertflow_jax.tasks.digit_scenes.files import write_benchmark
from expertflow_jax.tasks.registry import make_task

TASKS = ("vqa_v2", "mmbench")


def official_accuracies(
    export: Path, data_dir: Path, *, train: int, val: int, seed: int, batch_size: int
) -> dict[str, float]:
    """Writes the benchmark and answers its val split greedily with the exported checkpoint, all experts resident.

    Args:
      export: checkpoint directory.
      data_dir: gets the benchmark files.
      train, val, seed: questions per split and seed of the benchmark; blind guessers learn from the train split.
      batch_size: sequences answered at once.

    Returns:
      "vqa_v2" and "mmbench" (circular) accuracy in [0, 1], and those of `blind_accuracies`.
    """
    write_benchmark(data_dir, train=train, val=val, seed=seed)
    accuracies = {}
    with OffloadedModel.from_pretrained(
        str(export), policy="resident", dtype="float32", max_batch_size=batch_size, max_tokens=128
    ) as model:
        for name in TASKS:
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
    return accuracies | blind_accuracies(data_dir)
