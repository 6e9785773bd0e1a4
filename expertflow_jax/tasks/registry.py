"""Tasks by name, and from outside."""

import inspect
from pathlib import Path
from typing import Any

from expertflow_jax import names
from expertflow_jax.errors import InputError
from expertflow_jax.tasks.base import Task
from expertflow_jax.tasks.blind import BlindMMBench, BlindVqaV2
from expertflow_jax.tasks.multiple_choice import BENCHMARKS
from expertflow_jax.tasks.short_answers import GQA, Pope, TextVQA
from expertflow_jax.tasks.text import Prompts, Text
from expertflow_jax.tasks.vqa_v2 import VqaV2

_CLASSES = (VqaV2, *BENCHMARKS, Pope, TextVQA, GQA, Text, Prompts, BlindVqaV2, BlindMMBench)
TASKS: dict[str, Any] = {task.name: task for task in _CLASSES}
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


def make_task(task: Any, data_dir: str | Path, split: str, **options: Any) -> Task:
    """Opens a task's files under `data_dir`; official ones are prepared through TFDS as far as they are read.

    Args:
      task: see `task_class`; a class is called with (data_dir, split) and those of the options that it takes, an object
        is passed on.
      data_dir: holds a folder for each benchmark; prepared data goes to `tfds/` beside them.
      split: as the task names it: "train", "val", "test".
      options: see `official.OfficialTask`. A task that does not take one asks as it always does, but a sample is never
        left out.

    Raises:
      InputError: no such task or split, a sample of a task that draws none, or files that are missing or malformed.
    """
    meant = task_class(task)
    if not isinstance(meant, type):
        return meant
    taken = _parameters(meant)
    if options.get("sample_seed", -1) >= 0 and "sample_seed" not in taken:
        raise InputError(f"config key sample_seed: task {task} draws no sample; -1 takes the first num_examples")
    return meant(Path(data_dir), split, **{key: value for key, value in options.items() if key in taken})


def _parameters(meant: type) -> set[str]:
    """Names of what the class takes, of its base classes too where it passes options on to them."""
    names: set[str] = set()
    for parent in meant.__mro__:
        if "__init__" not in vars(parent):
            continue
        parameters = inspect.signature(parent.__init__).parameters.values()  # type: ignore[misc]
        names |= {parameter.name for parameter in parameters}
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
            break
    return names
