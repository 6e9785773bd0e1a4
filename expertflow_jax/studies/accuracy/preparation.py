"""What a study needs before its first cell: the config's cells checked, questions read, model and predictor loaded."""

from collections.abc import Sequence
from pathlib import Path

import ml_collections

from expertflow_jax.errors import InputError
from expertflow_jax.harness import data as study_data
from expertflow_jax.harness.launchers import check_launcher
from expertflow_jax.inference.loading import load_model, pin_experts, with_expert_dtype
from expertflow_jax.locate import locate
from expertflow_jax.models.device_form import named_form
from expertflow_jax.predictor import load_predictor
from expertflow_jax.simulation.costs import ComputeCosts
from expertflow_jax.studies.accuracy.execution import Setting
from expertflow_jax.studies.accuracy.grid import Cell, cells
from expertflow_jax.tasks.base import Example, Task

CLOCKS = ("virtual", "real")


def check(config: ml_collections.ConfigDict) -> list[Cell]:
    """The study's cells; raises InputError for a bad config before any work."""
    if config.clock not in CLOCKS:
        raise InputError(f"config key clock: {config.clock!r} is neither virtual nor real")
    for key in ("batch_size", "window", "bootstrap_samples", "text_tokens"):
        if config[key] < 1:
            raise InputError(f"config key {key}: {config[key]} is below 1")
    if not 0 < config.equivalence_margin < 1:
        raise InputError(
            f"config key equivalence_margin: {config.equivalence_margin} is not in (0, 1); 0.01 is one point"
        )
    if config.window < config.batch_size:
        raise InputError(f"config key window: {config.window} is smaller than batch_size {config.batch_size}")
    named_form(config.get("device_form"))
    check_launcher(*launcher_of(config))
    todo = cells(config)
    if not todo:
        raise InputError("config key grids: they hold no cell; see configs/quickstart.py")
    forecasting = [cell for cell in todo if cell.forecasts]
    if forecasting and not config.predictor:
        raise InputError(
            f"config key predictor: {forecasting[0].label()} forecasts; train one with train.predictor and name it"
        )
    return todo


def launcher_of(config: ml_collections.ConfigDict) -> tuple[str, int]:
    """The config's launcher and its number of workers; "" is this process."""
    return config.get("launcher", ""), config.get("workers", 1)


Questions = dict[str, tuple[Task, list[Example]]]
"""By the task's name in the config."""


def ask(config: ml_collections.ConfigDict, workdir: Path, todo: Sequence[Cell]) -> Questions:
    """Writes or reads the benchmarks' questions."""
    asked = {}
    for name in dict.fromkeys((*config.tasks, *(cell.task for cell in todo))):
        task = study_data.open_task(config, name, workdir)
        asked[name] = task, study_data.read(task, config.num_examples)
    return asked


def prepare(config: ml_collections.ConfigDict, asked: Questions, todo: Sequence[Cell]) -> Setting:
    """Loads model and predictor, encodes prompts and forecasts their routes."""
    costs = ComputeCosts.load(config.costs) if config.clock == "virtual" else None
    host_memory_budget = config.host_memory_budget or None
    form = named_form(config.get("device_form"))
    model = load_model(config.model, config.dtype, host_memory_budget=host_memory_budget, form=form)
    predictor = None
    if config.predictor:
        predictor = load_predictor(locate(config.predictor, "predictor"), expect_fingerprint=model.fingerprint)
    wanted = sorted({dtype for cell in todo for dtype in (cell.expert_dtype, cell.copies) if dtype})
    quantized = {name: with_expert_dtype(model, name, host_memory_budget) for name in wanted}
    for served in (model, *quantized.values()):
        pin_experts(served.store, None if predictor is None else predictor.popularity)
    data, signatures = {}, {}
    for name, (task, questions) in asked.items():
        data[name] = study_data.prepare(model, task, questions, config.num_examples, config.text_tokens)
        signatures[name] = study_data.signatures(model, predictor, data[name], config.batch_size)
    return Setting(
        model,
        predictor,
        data,
        signatures,
        costs,
        config.link,
        config.batch_size,
        config.window,
        config.max_wait,
        config.disk,
        quantized,
    )
