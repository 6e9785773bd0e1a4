"""Routing of the trained model and its predictor's forecasts as steps for the virtual clock, on other shapes too.

Axes: N sequences, T tokens, G steps of a continuation, L MoE layers, E experts, K top-k.
"""

import tempfile
from pathlib import Path

import numpy as np

from expertflow_jax.errors import InputError
from expertflow_jax.harness.data import prepare
from expertflow_jax.inference.forecasting import join_horizon
from expertflow_jax.inference.loading import LoadedModel
from expertflow_jax.predictor import Predictor
from expertflow_jax.predictor.forecast import combine_sequences, step_forecast
from expertflow_jax.simulation.replay import ReplayStep
from expertflow_jax.tasks.digit_scenes.files import write_benchmark
from expertflow_jax.tasks.registry import make_task
from expertflow_jax.workloads.routes import Recording, choices, forecasts, record
from expertflow_jax.workloads.setups import predicted_uses


def record_questions(model: LoadedModel, count: int, new_tokens: int, seed: int) -> Recording:
    """Routing on `count` questions of the made-up benchmark whose answers have `new_tokens` tokens.

    Raises:
      InputError: too few answers are as long.
    """
    with tempfile.TemporaryDirectory() as folder:
        write_benchmark(Path(folder), train=8, val=8 * count, seed=seed)
        prompts = prepare(model, make_task("vqa_v2", Path(folder), "val"), 8 * count, 0).prompts
    assert model.processor is not None, "the benchmark's prompts are text"
    long = record(model, prompts, new_tokens).long_answers(model.processor.eos_token_ids)
    if len(long.prompts) < count:
        raise InputError(
            f"only {len(long.prompts)} of {8 * count} answers have {new_tokens} tokens; lower the decode steps or "
            "config key sequences"
        )
    return long.first(count)


def recorded_steps(
    recording: Recording, predictor: Predictor, shape: tuple[int, int, int] | None, batch_size: int
) -> list[ReplayStep]:
    """Batches of `batch_size`, each its prefill and decode steps, with the predictor's forecasts; the forecast of the
    next batch's prompts is known from the beginning of a batch, as token schedulers know it.

    Args:
      shape: L, E, K to which the routing is carried over (`throughput.routes`); None: the trained model's own.
    """
    uses = predicted_uses(predictor, recording)
    layers, experts = recording.probs.shape[2:]
    top_k = predictor.config.top_k if shape is None else shape[2]
    if shape is not None:
        own, following = (forecasts(use, *shape) for use in uses)
        layers, experts = shape[:2]
    else:
        own, following = uses
    ids = choices(recording.probs, layers, experts, top_k)
    count, new_tokens = recording.tokens.shape
    steps: list[ReplayStep] = []
    queued: np.ndarray | None = None
    for first in reversed(range(0, count - batch_size + 1, batch_size)):
        batch = np.arange(first, first + batch_size)
        lengths = recording.prompt_lengths[batch]
        prompt = np.arange(ids.shape[1]) < lengths[:, None]
        use = step_forecast(own[batch], lengths)
        horizon = join_horizon(use, combine_sequences(following[batch, lengths - 1]), queued)
        batch_steps = [ReplayStep(int(lengths.sum()), _rows(ids[batch][prompt], experts), horizon)]
        for step in range(new_tokens):
            token = batch, lengths + step
            now, after = combine_sequences(own[token]), combine_sequences(following[token])
            horizon = join_horizon(now, after, queued, ends=step + 1 == new_tokens)
            batch_steps.append(ReplayStep(batch_size, _rows(ids[token], experts), horizon))
        steps, queued = batch_steps + steps, use
    return steps


def _rows(ids: np.ndarray, experts: int) -> np.ndarray:
    """How many tokens chose each expert: ids [N, L, K] -> int [L, E]."""
    layers = ids.shape[1]
    keys = ids + experts * np.arange(layers)[:, None]
    return np.bincount(keys.reshape(-1), minlength=layers * experts).reshape(layers, experts)
