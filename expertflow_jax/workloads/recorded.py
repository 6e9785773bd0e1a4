"""Routing of the trained model and its predictor's forecasts as steps for the virtual clock, on other shapes too.

Axes: N sequences, T tokens, G steps of a continuation, L MoE layers, E experts, K top-k.
"""

import dataclasses
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Int

from expertflow_jax.errors import InputError
from expertflow_jax.harness.data import TaskData, prepare, read
from expertflow_jax.inference.forecasting import join_horizon
from expertflow_jax.inference.loading import LoadedModel
from expertflow_jax.predictor import Predictor
from expertflow_jax.predictor.forecast import combine_batches, combine_sequences, step_forecast, wants_nearly_all
from expertflow_jax.simulation.replay import ReplayStep, together
from expertflow_jax.tasks.digit_scenes.files import write_benchmark
from expertflow_jax.tasks.registry import make_task
from expertflow_jax.workloads.routes import Recording, choices, forecasts, record
from expertflow_jax.workloads.setups import predicted_uses


def made_up_questions(model: LoadedModel, count: int, seed: int) -> TaskData:
    """The first `count` questions of the made-up benchmark's val split."""
    with tempfile.TemporaryDirectory() as folder:
        write_benchmark(Path(folder), train=8, val=count, seed=seed)
        task = make_task("vqa_v2", Path(folder), "val")
        return prepare(model, task, read(task, count), count, 0)


def record_questions(model: LoadedModel, count: int, new_tokens: int, seed: int) -> Recording:
    """Routing on `count` questions of the made-up benchmark whose answers have `new_tokens` tokens.

    Raises:
      InputError: too few answers are as long.
    """
    prompts = made_up_questions(model, 8 * count, seed).prompts
    assert model.processor is not None, "the benchmark's prompts are text"
    long = record(model, prompts, new_tokens).long_answers(model.processor.eos_token_ids)
    if len(long.prompts) < count:
        raise InputError(
            f"only {len(long.prompts)} of {8 * count} answers have {new_tokens} tokens; lower the decode steps or "
            "config key sequences"
        )
    return long.first(count)


CERTAIN = 1 - 1e-9  # the most that a forecast of one token counts in a product of many


@dataclasses.dataclass(frozen=True)
class RecordedStep:
    """One step of one batch, and what the predictor says.

    Attributes:
      step: without a forecast.
      now: float32 [L, E], P(the step uses the expert).
      following: float32 [L, E], the same of the token after each sequence's last.
    """

    step: ReplayStep
    now: np.ndarray
    following: np.ndarray


def recorded_steps(
    recording: Recording,
    predictor: Predictor,
    shape: tuple[int, int, int] | None,
    batch_size: int,
    batches_per_block: int = 1,
) -> list[ReplayStep]:
    """Batches of `batch_size`, each its prefill and decode steps, with the predictor's forecasts; see `in_blocks`.

    Args:
      shape: L, E, K to which the routing is carried over (`workloads.routes`); None: the trained model's own.
    """
    return in_blocks(recorded_batches(recording, predictor, shape, batch_size), batches_per_block)


def recorded_batches(
    recording: Recording,
    predictor: Predictor,
    shape: tuple[int, int, int] | None,
    batch_size: int,
    prompt_tokens: int | None = None,
) -> list[list[RecordedStep]]:
    """The steps of each batch of `batch_size`: its prefill, then one for each token of the continuation.

    Args:
      shape: L, E, K to which the routing is carried over (`workloads.routes`); None: the trained model's own.
      prompt_tokens: of every prompt (see `longer_prompts`); None: as recorded.
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
    recorded = np.arange(ids.shape[1]) < recording.prompt_lengths[:, None]  # bool [N, T]
    unused = np.log1p(-np.minimum(own.astype(np.float64), CERTAIN)).reshape(recorded.size, -1)  # log P, [N * T, L * E]
    batches = []
    for first in range(0, count - batch_size + 1, batch_size):
        batch = np.arange(first, first + batch_size)
        lengths = recording.prompt_lengths[batch]
        if prompt_tokens is None:
            prompt = ReplayStep(int(lengths.sum()), _rows(ids[batch][recorded[batch]], experts), begins=True)
            now = step_forecast(own[batch], lengths)
        else:
            times = longer_prompts(recorded, batch, prompt_tokens)
            prompt = ReplayStep(batch_size * prompt_tokens, _rows(ids, experts, times), begins=True)
            now = -np.expm1(times.reshape(-1) @ unused).reshape(layers, experts).astype(np.float32)
        steps = [RecordedStep(prompt, now, combine_sequences(following[batch, lengths - 1]))]
        for step in range(new_tokens):
            token = batch, lengths + step
            decode = ReplayStep(batch_size, _rows(ids[token], experts))
            steps.append(RecordedStep(decode, combine_sequences(own[token]), combine_sequences(following[token])))
        batches.append(steps)
    return batches


def longer_prompts(
    recorded: Bool[np.ndarray, "N T"], batch: Int[np.ndarray, "B"], tokens: int
) -> Int[np.ndarray, "N T"]:
    """How often each recorded token stands in a batch's prompts of so many tokens: a sequence's prompt ends with its
    own, before which those of the sequences after it stand, as many as it takes (the first of them cut).

    Args:
      recorded: which tokens are of prompts.
      batch: its sequences.
    """
    lengths = recorded.sum(1)
    times = np.zeros(recorded.shape, np.int64)
    for sequence in batch.tolist():
        missing, other = tokens, sequence
        while missing > 0:
            taken = min(missing, int(lengths[other]))
            times[other, lengths[other] - taken : lengths[other]] += 1
            missing -= taken
            other = (other + 1) % len(lengths)
    return times


def in_blocks(
    batches: Sequence[Sequence[RecordedStep]], batches_per_block: int, *, top_k: int | None = None
) -> list[ReplayStep]:
    """The super-steps of all batches, `batches_per_block` at a time. The forecast of the next block's prompts is known
    from the beginning of a block, as token schedulers know it.

    Args:
      batches: of as many steps each.
      top_k: K; given, no predictor runs for a block all of whose super-steps want nearly all experts.
    """
    supersteps: list[ReplayStep] = []
    queue: list[np.ndarray] = []
    for first in reversed(range(0, len(batches), batches_per_block)):
        block = list(zip(*batches[first : first + batches_per_block], strict=True))
        certain = top_k is not None and all(_certain(members, top_k) for members in block)
        now = [combine_batches([member.now for member in members]) for members in block]
        if certain:
            now = [np.ones_like(use) for use in now]
        steps = []
        for number, members in enumerate(block):
            following = now[-1] if certain else combine_batches([member.following for member in members])
            ends = 0 < number == len(block) - 1
            horizon = join_horizon(now[number], [] if ends else [following], queue, ending=int(ends))
            steps.append(together([member.step for member in members], horizon, predicted=not certain))
        supersteps = steps + supersteps
        queue = [now[0]]
    return supersteps


def _certain(members: Sequence[RecordedStep], top_k: int) -> bool:
    tokens = sum(member.step.tokens for member in members)
    return wants_nearly_all(tokens, top_k, members[0].now.shape[1])


def _rows(
    ids: Int[np.ndarray, "*tokens L K"], experts: int, times: Int[np.ndarray, "*tokens"] | None = None
) -> Int[np.ndarray, "L E"]:
    """How many tokens chose each expert. Args: times: how often each token stands there; None: once."""
    *_, layers, top_k = ids.shape
    keys = ids + experts * np.arange(layers)[:, None]
    weights = None if times is None else np.repeat(times.reshape(-1), layers * top_k)
    counts = np.bincount(keys.reshape(-1), weights, minlength=layers * experts)
    return counts.reshape(layers, experts).astype(np.int64)
