"""Tasks by name, and from outside."""

import inspect
from pathlib import Path
from typing import Any

from expertflow_jax import names
from expertflow_jax.errors import InputError
from expertflow_jax.tasks.base import Task
from expertflow_jax.tasks.mmbench import MMBench
from expertflow_jax.tasks.text import Prompts, Text
from expertflow_jax.tasks.vqa_v2 import VqaV2

TASKS: dict[str, Any] = {task.name: task for task in (VqaV2, MMBench, Text, Prompts)}
_METHODS = ("examples", "score", "aggregate")


def task_class(task: Any) -> Any:
    """The class that is meant by a name of `TASKS` or "package.module:Class"; a class or an object as it is.

    Raises:
      InputError: there is no such task (the nearest name is suggested) or module, or it lacks a method of `base.Task`.
    """
    meant = names.resolve("task", task, TASKS, object)
    for method in _METHODS:
        if not callable(getattr(meant, method, None)):
            raise InputError(f"task {task}: it has no method {method!r}; see expertflow_jax.tasks.base.Task")
    return meant


def make_task(
    task: Any, data_dir: str | Path, split: str, *, image_first: bool = False, prepared_dir: Path | None = None
) -> Task:
    """Opens a task's files under `data_dir`; official ones are prepared once through TFDS.

    Args:
      task: see `task_class`; a class is called with (data_dir, split), an object is passed on.
      data_dir: holds `vqa_v2/`, `mmbench/`, `text/` or `prompts/`; prepared data goes to `tfds/` beside them.
      split: "train" or "val".
      image_first: see `base.user_turn`; for tasks that take it.
      prepared_dir: for prepared data where `data_dir` cannot be written; for tasks that take it.

    Raises:
      InputError: no such task or split, or files that are missing or malformed.
    """
    meant = task_class(task)
    if not isinstance(meant, type):
        return meant
    takes = inspect.signature(meant).parameters
    options = {"image_first": image_first, "prepared_dir": prepared_dir}
    return meant(Path(data_dir), split, **{key: value for key, value in options.items() if key in takes})
