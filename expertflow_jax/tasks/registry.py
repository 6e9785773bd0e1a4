"""Tasks by name."""

import difflib
from pathlib import Path

from expertflow_jax.errors import InputError
from expertflow_jax.tasks.base import Task
from expertflow_jax.tasks.mmbench import MMBench
from expertflow_jax.tasks.text import Prompts, Text
from expertflow_jax.tasks.vqa_v2 import VqaV2

TASKS = {task.name: task for task in (VqaV2, MMBench, Text, Prompts)}


def make_task(name: str, data_dir: str | Path, split: str, *, image_first: bool = False) -> Task:
    """Opens a task's files under `data_dir`; official ones are prepared once through TFDS.

    Args:
      name: one of TASKS.
      data_dir: holds `vqa_v2/`, `mmbench/`, `text/` or `prompts/`; prepared data goes to `tfds/` beside them.
      split: "train" or "val".
      image_first: see `base.user_turn`.

    Raises:
      InputError: no such task or split, or files that are missing or malformed.
    """
    if name not in TASKS:
        near = difflib.get_close_matches(name, TASKS, n=1, cutoff=0.0)[0]
        raise InputError(f"task {name!r} does not exist; did you mean {near!r}? Known: {', '.join(TASKS)}")
    return TASKS[name](Path(data_dir), split, image_first=image_first)
