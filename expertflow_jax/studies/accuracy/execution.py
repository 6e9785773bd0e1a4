"""Runs one cell: schedules its sequences, generates every answer through the expert cache, and counts.

Axes: W examples, V vocabulary, L MoE layers, E experts.
"""

import dataclasses
import functools
import gc
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from expertflow_jax import interrupts
from expertflow_jax.harness.data import TaskData, forecast_prompts
from expertflow_jax.inference.forecasting import Forecaster, Queue
from expertflow_jax.inference.generation import BatchRequest, Choosing, generate_batches
from expertflow_jax.inference.loading import LoadedModel
from expertflow_jax.inference.members import StepRecord, needed_by_super_step
from expertflow_jax.inference.memory import RequestSize, plan_request
from expertflow_jax.inference.predicted import predictor_time
from expertflow_jax.inference.pregated import gate_bytes
from expertflow_jax.inference.scoring import score_batches
from expertflow_jax.inference.served import make_forecaster, serve
from expertflow_jax.inference.session import InferenceSession
from expertflow_jax.offload.budget import MemoryPlan
from expertflow_jax.offload.clock import RealClock, VirtualClock
from expertflow_jax.offload.engine import ExpertCacheEngine
from expertflow_jax.offload.misses.losses import Losses
from expertflow_jax.offload.policies import make_policy
from expertflow_jax.predictor import Predictor
from expertflow_jax.predictor.forecast import combine_sequences
from expertflow_jax.processing import Processor, end_token_ids
from expertflow_jax.scheduling import Scheduler, make_scheduler
from expertflow_jax.simulation.costs import ComputeCosts
from expertflow_jax.studies.accuracy.first_tokens import FirstTokens
from expertflow_jax.studies.accuracy.grid import Cell


@dataclasses.dataclass(frozen=True)
class Setting:
    """What all cells of a study share.

    Attributes:
      model: as the checkpoint has it.
      quantized: by name of the `expert_dtype` of cells, or of the copies of a miss policy, the same model with such
        experts.
      predictor: None if no cell forecasts.
      data, signatures: per task; signatures float32 [W, L, E].
      costs: seconds of each stage on the virtual clock; None under the real one.
    """

    model: LoadedModel
    predictor: Predictor | None
    data: dict[str, TaskData]
    signatures: dict[str, np.ndarray]
    costs: ComputeCosts | None
    link: str
    batch_size: int
    window: int
    max_wait: int | None
    disk: str = "direct"
    quantized: Mapping[str, LoadedModel] = dataclasses.field(default_factory=dict)

    def model_of(self, cell: Cell) -> LoadedModel:
        """The model that the cell runs."""
        return self.quantized[cell.expert_dtype] if cell.expert_dtype else self.model

    def plan(self, cell: Cell) -> MemoryPlan:
        """How the cell's device memory is divided; raises InputError below the least budget or the policy's slots."""
        data, model, copies = self.data[cell.task], self.model_of(cell), self.copies_of(cell)
        stages = model.stages
        plan = plan_request(
            model.config,
            stages.dense_bytes + gate_bytes(make_policy(cell.variant.policy), model),
            model.store.expert_bytes,
            RequestSize.of(
                data.prompts,
                self.batch_size,
                max(e.max_new_tokens for e in data.examples),
                cell.batches_per_block,
            ),
            itemsize=np.dtype(stages.dtype).itemsize,
            predictor=self.predictor if cell.forecasts else None,
            memory_budget=cell.memory_budget,
            cache_fraction=cell.cache_fraction,
            scratch_bytes=max(
                part.stages.form.scratch_bytes(part.stages.layout) for part in (model, copies) if part is not None
            ),
            host=model.host,
        )
        cell.variant.check_slots(plan.slots, model.store)
        return plan

    def copies_of(self, cell: Cell) -> LoadedModel | None:
        """The model with the quantised experts that the cell's miss policy serves misses from, if it does."""
        return self.quantized[cell.copies] if cell.copies else None

    def scheduler(self, cell: Cell) -> Scheduler:
        """The cell's token scheduler."""
        return make_scheduler(cell.scheduler, batch_size=self.batch_size, seed=cell.seed, max_wait=self.max_wait)


@dataclasses.dataclass(frozen=True)
class Execution:
    """What a cell did.

    Attributes:
      texts: answers, in the order of the examples; under teacher forcing the foretold token ids.
      first_logits: float32 [W, V], of each answer's first token; under teacher forcing after the last token.
      digests: uint8 [W, 16], of the logits of all its tokens.
      nats: mean negative log-likelihood of all foretold tokens; None unless teacher-forced.
      needed: bool [super-steps, L, E], experts that the routers of each super-step asked for.
      stats: the engine's.
      losses: what the miss policy changed.
      tokens: prompt and answer tokens processed.
      experts_per_batch: distinct experts per layer that a batch asks for until its last answer, mean.
      first_token_seconds: from the beginning of an answer's batch, mean; None under teacher forcing.
      peak_device_bytes: largest sum of what lived on the device.
      plan: how the memory was divided.
    """

    texts: list[str]
    first_logits: np.ndarray
    digests: np.ndarray
    nats: float | None
    needed: np.ndarray
    stats: dict[str, Any]
    losses: Losses
    tokens: int
    experts_per_batch: float
    first_token_seconds: float | None
    peak_device_bytes: int
    plan: MemoryPlan


def execute(
    setting: Setting,
    cell: Cell,
    truth: np.ndarray | None = None,
    on_batch: Callable[[int, int], None] | None = None,
) -> Execution:
    """Runs the cell from a warm cache.

    Args:
      truth: bool [super-steps, L, E], `Execution.needed` of the all-resident run of the same blocks, where that is
        forecast.
      on_batch: called with (batches done, batches in all).

    Raises:
      InputError: the memory budget is too small.
    """
    plan = setting.plan(cell)
    clock = VirtualClock() if setting.costs is not None else RealClock()
    gc.collect()  # the slots of an engine that is gone must not count as this cell's memory
    served: dict[str, Any] = {"miss_policy": cell.miss_policy, "costs": setting.costs, "disk": setting.disk}
    served["copies"] = setting.copies_of(cell)
    with serve(setting.model_of(cell), cell.variant, plan.slots, setting.link, clock, **served) as session:
        if not clock.virtual:  # compile outside the measurement
            _run(setting, cell, session, truth, None, plan)
            session.losses.reset()
            session.engine.warm_up()
            session.engine.reset_stats()
        return _run(setting, cell, session, truth, on_batch, plan)


def _run(
    setting: Setting,
    cell: Cell,
    session: InferenceSession,
    truth: np.ndarray | None,
    on_batch: Callable[[int, int], None] | None,
    plan: MemoryPlan,
) -> Execution:
    model, data = setting.model_of(cell), setting.data[cell.task]
    count = len(data.prompts)
    texts = [""] * count
    first_logits = np.zeros((count, model.config.text.vocab_size), np.float32)
    digests = np.zeros((count, 16), np.uint8)
    nats: list[np.ndarray] = []
    tally = Tally()
    engine = session.engine
    first_tokens = FirstTokens(engine.clock)
    forecaster = make_forecaster(session, cell.variant, setting.predictor, truth)
    begun: list[np.ndarray] = []  # example indices of each batch

    def batches() -> Iterator[tuple[np.ndarray, Queue]]:
        for batch, queued in _batches(setting, cell, engine):
            interrupts.check()
            begun.append(batch)
            first_tokens.begin(batch.tolist())
            yield batch, queued

    session.records = []
    run = _scored if data.task.teacher_forced else functools.partial(_answered, first_tokens=first_tokens)
    for number, answers in enumerate(run(setting, cell, session, forecaster, batches())):
        for i, answer in zip(begun[number], answers, strict=True):
            texts[i], first_logits[i] = answer.text, answer.logits
            digests[i] = np.frombuffer(bytes.fromhex(answer.digest), np.uint8)
            if answer.nats is not None:
                nats.append(answer.nats)
        tally.take(session.records)
        if on_batch is not None:
            on_batch(number + 1, _number_of_batches(setting, count))
    return Execution(
        texts,
        first_logits,
        digests,
        float(np.mean(np.concatenate(nats), dtype=np.float64)) if nats else None,
        np.stack(tally.needed),
        engine.stats() | {"predictor_tokens_saved": forecaster.tokens_saved},
        session.losses,
        tally.tokens,
        float(np.mean([asked.sum(axis=1).mean() for asked in tally.asked.values()])),
        first_tokens.mean,
        session.peak_device_bytes,
        plan,
    )


class Tally:
    """What the steps of a run asked for, added up as batches end, so that records of steps do not pile up.

    Attributes:
      needed: bool [L, E] of each super-step.
      asked: bool [L, E] of each batch by number, until its last answer.
      tokens: processed.
    """

    def __init__(self) -> None:
        self.needed: list[np.ndarray] = []
        self.asked: dict[int, np.ndarray] = {}
        self.tokens = 0

    def take(self, records: list[StepRecord]) -> None:
        """Adds what the steps recorded, and empties the list."""
        self.needed += needed_by_super_step(records)
        for record in records:
            asked = self.asked.setdefault(record.batch, np.zeros_like(record.needed))  # [L, E]
            asked |= record.needed
            self.tokens += int(record.lengths.sum())
        records.clear()


class _Result(NamedTuple):
    """What came of one example; see `Execution`."""

    text: str
    logits: np.ndarray  # float32 [V]
    digest: str
    nats: np.ndarray | None = None


def _scored(
    setting: Setting,
    cell: Cell,
    session: InferenceSession,
    forecaster: Forecaster,
    batches: Iterator[tuple[np.ndarray, Queue]],
) -> Iterator[list[_Result]]:
    """Each batch's sequences, teacher-forced: as text, the tokens that the model would have chosen."""
    prompts = setting.data[cell.task].prompts
    groups = (([prompts[i] for i in batch], queued) for batch, queued in batches)
    sizes = {"batch_size": setting.batch_size, "batches_per_block": cell.batches_per_block}
    for scored in score_batches(session, groups, forecaster, **sizes):
        yield [_Result(" ".join(map(str, s.greedy)), s.last_logits, s.logits_digest, s.nats) for s in scored]


def _answered(
    setting: Setting,
    cell: Cell,
    session: InferenceSession,
    forecaster: Forecaster,
    batches: Iterator[tuple[np.ndarray, Queue]],
    first_tokens: FirstTokens,
) -> Iterator[list[_Result]]:
    """Each batch's greedy answers."""
    data, processor = setting.data[cell.task], setting.model.processor
    requests = (
        BatchRequest([data.prompts[i] for i in batch], [data.examples[i].max_new_tokens for i in batch], batch, queued)
        for batch, queued in batches
    )
    stop_ids = processor.eos_token_ids if processor is not None else end_token_ids(setting.model.path)
    choosing = Choosing(stop_ids, on_token=first_tokens.take, on_end=first_tokens.end)
    sizes = {"batch_size": setting.batch_size, "batches_per_block": cell.batches_per_block}
    for answers in generate_batches(session, requests, forecaster, choosing, **sizes):
        yield [_Result(_text(processor, a.token_ids), a.first_logits, a.logits_digest) for a in answers]


def _text(processor: Processor | None, ids: list[int]) -> str:
    """Decoded; without a tokenizer, the token ids themselves."""
    return " ".join(map(str, ids)) if processor is None else processor.decode(ids)


def _windows(setting: Setting, count: int) -> list[np.ndarray]:
    """Indices of the examples that the token scheduler sees together."""
    return np.array_split(np.arange(count), -(-count // setting.window))


def _number_of_batches(setting: Setting, count: int) -> int:
    return sum(-(-len(window) // setting.batch_size) for window in _windows(setting, count))


def _batches(setting: Setting, cell: Cell, engine: ExpertCacheEngine) -> Iterator[tuple[np.ndarray, Queue]]:
    """(example indices of a batch, what the batches behind it will use), window by window.

    Forecasts for scheduling cost time. They say what waits in the queue, too, as far as the window goes; where nothing
    was forecast, nothing is known of it.
    """
    scheduler = setting.scheduler(cell)
    data = setting.data[cell.task]
    for window in _windows(setting, len(data.prompts)):
        signatures = setting.signatures[cell.task][window]
        if scheduler.uses_forecast:
            _book_scheduling(setting, data, window, engine)
        batches = scheduler.plan(signatures, arrival=window.tolist())
        uses = [combine_sequences(signatures[batch]) for batch in batches] if scheduler.uses_forecast else []
        for number, batch in enumerate(batches, start=1):
            yield window[batch], uses[number:]


def _book_scheduling(setting: Setting, data: TaskData, window: np.ndarray, engine: ExpertCacheEngine) -> None:
    """The forecasts that a window is scheduled by take their time; what they say is known from `Setting.signatures`."""
    assert setting.predictor is not None, "the runner refuses such a cell without a predictor"
    for start in range(0, len(window), setting.batch_size):
        prompts = [data.prompts[i] for i in window[start : start + setting.batch_size]]
        tokens = sum(len(prompt.input_ids) for prompt in prompts)
        with predictor_time(engine.clock, setting.costs, tokens, "forecast for scheduling"):
            if not engine.clock.virtual:
                forecast_prompts(setting.model, setting.predictor, prompts, setting.batch_size)
