"""Runs one cell: schedules its sequences, generates every answer through the expert cache, and counts.

Axes: W examples, V vocabulary, L MoE layers, E experts.
"""

import dataclasses
import functools
import gc
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from expertflow_jax import interrupts
from expertflow_jax.harness.data import TaskData, forecast_prompts
from expertflow_jax.inference import saved_session
from expertflow_jax.inference.forecasting import Forecaster, Queue
from expertflow_jax.inference.generation import BatchRequest, Choosing, generate_batches
from expertflow_jax.inference.loading import LoadedModel
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
from expertflow_jax.studies.accuracy.batch_results import Answer, BatchResult
from expertflow_jax.studies.accuracy.first_tokens import FirstTokens
from expertflow_jax.studies.accuracy.grid import Cell
from expertflow_jax.studies.accuracy.saved_batches import SavedBatches


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
    saved: SavedBatches | None = None,
) -> Execution:
    """Runs the cell from a warm cache.

    Args:
      truth: bool [super-steps, L, E], `Execution.needed` of the all-resident run of the same blocks, where that is
        forecast.
      on_batch: called with (batches done, batches in all).
      saved: where finished batches are kept, and found if this cell was begun before; on the virtual clock alone, as
        times that were measured go with the process.

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
            _run(setting, cell, session, plan, truth)
            session.losses.reset()
            session.engine.warm_up()
            session.engine.reset_stats()
        return _run(setting, cell, session, plan, truth, on_batch, saved if clock.virtual else None)


def _run(
    setting: Setting,
    cell: Cell,
    session: InferenceSession,
    plan: MemoryPlan,
    truth: np.ndarray | None,
    on_batch: Callable[[int, int], None] | None = None,
    saved: SavedBatches | None = None,
) -> Execution:
    data = setting.data[cell.task]
    first_tokens = FirstTokens(session.clock)
    forecaster = make_forecaster(session, cell.variant, setting.predictor, truth)
    results = _resume(session, forecaster, first_tokens, saved)
    before = len(results)
    begun: list[np.ndarray] = []  # example indices of each batch that begins here

    def batches() -> Iterator[tuple[np.ndarray, Queue]]:
        for batch, queued in _batches(setting, cell, session.engine, before):
            interrupts.check()
            begun.append(batch)
            first_tokens.begin(batch.tolist())
            yield batch, queued

    session.records = []
    run = _scored if data.task.teacher_forced else functools.partial(_answered, first_tokens=first_tokens)
    state = functools.partial(saved_session.save, session, forecaster, first_tokens.seconds)
    for answers in run(setting, cell, session, forecaster, batches()):
        results.append(BatchResult.of(begun[len(results) - before], answers, session.records))
        session.records.clear()
        if saved is not None:
            resting = before + len(begun) == len(results)  # no batch is on its way
            saved.add(results[-1], state if resting else None)
        if on_batch is not None:
            on_batch(len(results), _number_of_batches(setting, len(data.prompts)))
    stats = session.engine.stats() | {"predictor_tokens_saved": forecaster.tokens_saved}
    return _execution(setting.model_of(cell), results, stats, first_tokens.mean, session, plan)


def _resume(
    session: InferenceSession, forecaster: Forecaster, first_tokens: FirstTokens, saved: SavedBatches | None
) -> list[BatchResult]:
    """Batches that an earlier run has finished; the session is brought to where it was behind them."""
    earlier = saved.load() if saved is not None else None
    if earlier is None:
        return []
    modules = {type(policy).__module__ for policy in (session.engine.policy, session.miss_policy)}
    first_tokens.seconds.update(saved_session.restore(earlier.state, session, forecaster, modules))
    return earlier.batches


def _execution(
    model: LoadedModel,
    results: Sequence[BatchResult],
    stats: dict[str, Any],
    first_token_seconds: float | None,
    session: InferenceSession,
    plan: MemoryPlan,
) -> Execution:
    """Everything in the order of the examples, and the sums."""
    count = sum(len(batch.examples) for batch in results)
    texts = [""] * count
    first_logits = np.zeros((count, model.config.text.vocab_size), np.float32)
    digests = np.zeros((count, 16), np.uint8)
    asked: dict[int, np.ndarray] = {}  # by batch, bool [L, E]
    for batch in results:
        first_logits[batch.examples] = batch.logits
        for example, text, digest in zip(batch.examples, batch.texts, batch.digests, strict=True):
            texts[example], digests[example] = text, np.frombuffer(bytes.fromhex(digest), np.uint8)
        for number, part in batch.asked.items():
            asked[number] = asked[number] | part if number in asked else part
    nats = [nats for batch in results for nats in batch.nats]
    return Execution(
        texts,
        first_logits,
        digests,
        float(np.mean(np.concatenate(nats), dtype=np.float64)) if nats else None,
        np.stack([needed for batch in results for needed in batch.needed]),
        stats,
        session.losses,
        sum(batch.tokens for batch in results),
        float(np.mean([experts.sum(axis=1).mean() for experts in asked.values()])),
        first_token_seconds,
        session.peak_device_bytes,
        plan,
    )


def _scored(
    setting: Setting,
    cell: Cell,
    session: InferenceSession,
    forecaster: Forecaster,
    batches: Iterator[tuple[np.ndarray, Queue]],
) -> Iterator[list[Answer]]:
    """Each batch's sequences, teacher-forced: as text, the tokens that the model would have chosen."""
    prompts = setting.data[cell.task].prompts
    groups = (([prompts[i] for i in batch], queued) for batch, queued in batches)
    sizes = {"batch_size": setting.batch_size, "batches_per_block": cell.batches_per_block}
    for scored in score_batches(session, groups, forecaster, **sizes):
        yield [Answer(" ".join(map(str, s.greedy)), s.last_logits, s.logits_digest, s.nats) for s in scored]


def _answered(
    setting: Setting,
    cell: Cell,
    session: InferenceSession,
    forecaster: Forecaster,
    batches: Iterator[tuple[np.ndarray, Queue]],
    first_tokens: FirstTokens,
) -> Iterator[list[Answer]]:
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
        yield [Answer(_text(processor, a.token_ids), a.first_logits, a.logits_digest) for a in answers]


def _text(processor: Processor | None, ids: list[int]) -> str:
    """Decoded; without a tokenizer, the token ids themselves."""
    return " ".join(map(str, ids)) if processor is None else processor.decode(ids)


def _windows(setting: Setting, count: int) -> list[np.ndarray]:
    """Indices of the examples that the token scheduler sees together."""
    return np.array_split(np.arange(count), -(-count // setting.window))


def _number_of_batches(setting: Setting, count: int) -> int:
    return sum(-(-len(window) // setting.batch_size) for window in _windows(setting, count))


def _batches(
    setting: Setting, cell: Cell, engine: ExpertCacheEngine, before: int = 0
) -> Iterator[tuple[np.ndarray, Queue]]:
    """(example indices of a batch, what the batches behind it will use), window by window.

    Forecasts for scheduling cost time. They say what waits in the queue, too, as far as the window goes; where nothing
    was forecast, nothing is known of it.

    Args:
      before: batches that are passed over, as they have been run.
    """
    scheduler = setting.scheduler(cell)
    data, first = setting.data[cell.task], 0
    for window in _windows(setting, len(data.prompts)):
        signatures = setting.signatures[cell.task][window]
        if scheduler.uses_forecast and first >= before:
            _book_scheduling(setting, data, window, engine)
        batches = scheduler.plan(signatures, arrival=window.tolist())
        uses = [combine_sequences(signatures[batch]) for batch in batches] if scheduler.uses_forecast else []
        for number, batch in enumerate(batches, start=1):
            if first + number > before:
                yield window[batch], uses[number:]
        first += len(batches)


def _book_scheduling(setting: Setting, data: TaskData, window: np.ndarray, engine: ExpertCacheEngine) -> None:
    """The forecasts that a window is scheduled by take their time; what they say is known from `Setting.signatures`."""
    assert setting.predictor is not None, "the runner refuses such a cell without a predictor"
    for start in range(0, len(window), setting.batch_size):
        prompts = [data.prompts[i] for i in window[start : start + setting.batch_size]]
        tokens = sum(len(prompt.input_ids) for prompt in prompts)
        with predictor_time(engine.clock, setting.costs, tokens, "forecast for scheduling"):
            if not engine.clock.virtual:
                forecast_prompts(setting.model, setting.predictor, prompts, setting.batch_size)
