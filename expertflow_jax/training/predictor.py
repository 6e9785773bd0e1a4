"""Trains the routing path predictor from a trace set: AdamW, warm-up and cosine decay, resumable (`run_steps`).

The sequences of a step are a pure function of (seed, step), so a killed run that resumes ends with the same loss as an
uninterrupted one. Axes: N sequences, B batch, T tokens, D width of the served model, L MoE layers, E experts, K top-k.
"""

import dataclasses
import functools
import hashlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from expertflow_jax.errors import InputError
from expertflow_jax.harness.workdir import Workdir
from expertflow_jax.predictor.losses import LOSSES, routing_loss
from expertflow_jax.predictor.model import PredictorConfig, RoutingPathPredictor
from expertflow_jax.predictor.runtime import Predictor
from expertflow_jax.predictor.trace_forecasts import TOKEN_BUCKET, calibrate, following_experts, following_places
from expertflow_jax.routing.statistics import popularity
from expertflow_jax.routing.trace_set import TraceSet
from expertflow_jax.training.loop import State, adamw, run_steps


@dataclasses.dataclass(frozen=True)
class TrainingConfig:
    """How to train; `configs/digit_scenes_predictor.py` says what each number is for."""

    steps: int = 4000
    batch_size: int = 64
    learning_rate: float = 3e-3
    final_lr_fraction: float = 0.02
    warmup_steps: int = 100
    weight_decay: float = 0.05
    clip_norm: float = 1.0
    loss: str = "bce"
    positive_weight: float = 1.0
    decode_weight: float = 1.0
    following_weight: float = 0.3
    seed: int = 0
    log_every: int = 50
    checkpoint_every: int = 500

    def __post_init__(self) -> None:
        for name in (
            "steps",
            "batch_size",
            "learning_rate",
            "clip_norm",
            "positive_weight",
            "decode_weight",
            "following_weight",
        ):
            if not getattr(self, name) > 0:
                raise InputError(f"training.{name}: {getattr(self, name)!r} must be positive")
        for name in ("log_every", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise InputError(f"training.{name}: {getattr(self, name)!r} must be at least 1")
        if self.loss not in LOSSES:
            raise InputError(f"training.loss: {self.loss!r}; choose one of {', '.join(LOSSES)}")


class BatchOrder:
    """Which sequences make up a step: epochs of shuffled sequences, a pure function of (seed, step)."""

    def __init__(self, count: int, batch_size: int, seed: int):
        self._count, self._batch, self._seed = count, min(batch_size, count), seed
        self._epoch, self._order = -1, np.empty(0, np.int64)

    def __call__(self, step: int) -> np.ndarray:
        """int64 [B]: indices of the sequences of `step`; no sequence twice within an epoch."""
        per_epoch = self._count // self._batch
        epoch, place = divmod(step, per_epoch)
        if epoch != self._epoch:
            self._epoch = epoch
            self._order = np.random.default_rng((self._seed, epoch)).permutation(self._count)
        return self._order[place * self._batch : (place + 1) * self._batch]


def initial_bias(frequency: np.ndarray) -> np.ndarray:
    """Log-odds of each expert's frequency [L, E]: the predictor starts out as the popularity baseline."""
    p = np.clip(frequency, 1e-4, 1 - 1e-4)
    return np.log(p / (1 - p)).astype(np.float32)


def make_optimizer(config: TrainingConfig) -> optax.GradientTransformation:
    """AdamW with warm-up and cosine decay; weight decay on matrices only."""
    warmup = min(config.warmup_steps, max(config.steps - 1, 0))
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, config.learning_rate, warmup, config.steps, config.learning_rate * config.final_lr_fraction
    )
    return adamw(schedule, weight_decay=config.weight_decay, clip_norm=config.clip_norm, b2=0.98)


def _make_step(graph, optimizer: optax.GradientTransformation, config: TrainingConfig) -> Callable:
    score = functools.partial(routing_loss, kind=config.loss, positive_weight=config.positive_weight)

    def loss(params, embeddings, experts, token_weights, before, after, counted):
        logits, following, _ = nnx.merge(graph, params)(embeddings, before=before)
        loss_now = score(logits, experts, token_weights=token_weights)
        return loss_now + config.following_weight * score(following, after, counted=counted)

    @functools.partial(jax.jit, donate_argnums=0)
    def step(state, *batch):
        value, grads = jax.value_and_grad(loss)(state["params"], *batch)
        updates, opt_state = optimizer.update(grads, state["opt_state"], state["params"])
        params = optax.apply_updates(state["params"], updates)
        return {"params": params, "opt_state": opt_state}, {"loss": value, "grad_norm": optax.global_norm(grads)}

    return step


def train_predictor(
    traces: TraceSet,
    model: PredictorConfig,
    config: TrainingConfig,
    workdir: str | Path,
    *,
    held_out: TraceSet | None = None,
    show_progress: bool = True,
    on_step: Callable[[int], None] | None = None,
) -> tuple[Predictor, dict[str, Any]]:
    """Trains to `config.steps`, from the newest checkpoint in `workdir` if there is one.

    Args:
      traces: training sequences.
      held_out: sequences kept apart, to calibrate the probabilities on; None: a part of `traces`
        (optimistic).
      workdir: a `Workdir` of this training alone; see there and at `run_steps` for what it holds.
      on_step: called with each finished step's index.

    Returns:
      The predictor, calibrated, and {"steps", "loss" (last), "train_seconds" (this process)}.

    Raises:
      InputError: traces and model do not fit, or the workdir belongs to another run or process.
      FloatingPointError: the loss is not finite.
    """
    _check_fit(traces, model)
    frequency = popularity(traces.trace)
    module = RoutingPathPredictor(model, rngs=nnx.Rngs(config.seed))
    decode = traces.trace.token_mask("decode")
    answered = popularity(traces.trace, phase="decode") if decode.any() else frequency
    module.heads.bias[...] = jnp.asarray(initial_bias(frequency))
    module.following.bias[...] = jnp.asarray(initial_bias(answered))
    graph, params = nnx.split(module)
    optimizer = make_optimizer(config)
    update = _make_step(graph, optimizer, config)
    batches = BatchOrder(len(traces), config.batch_size, config.seed)
    asked = following_places(traces.trace)

    def step(state: State, number: int) -> tuple[State, dict[str, jax.Array]]:
        return update(state, *_arrays(traces, batches(number), decode, asked, config))

    began = time.perf_counter()
    with Workdir(workdir, _identity(model, config, traces)) as place:
        state, row = run_steps(
            {"params": params, "opt_state": optimizer.init(params)},
            step,
            place,
            steps=config.steps,
            log_every=config.log_every,
            checkpoint_every=config.checkpoint_every,
            name="predictor",
            on_step=on_step,
            show_progress=show_progress,
        )
    summary = {"steps": config.steps, "loss": row["loss"], "train_seconds": time.perf_counter() - began}
    predictor = Predictor(
        model, state["params"], popularity=frequency, model_fingerprint=traces.trace.model_fingerprint
    )
    return calibrate(predictor, held_out if held_out is not None else traces), summary


def _identity(model: PredictorConfig, config: TrainingConfig, traces: TraceSet) -> dict[str, Any]:
    """What a workdir is bound to: a run goes on only under the same config and the same traces."""
    return {
        "model": model.to_dict(),
        "training": dataclasses.asdict(config),
        "model_fingerprint": traces.trace.model_fingerprint,
        "traces": traces.checksum or hashlib.sha256(traces.trace.experts.tobytes()).hexdigest()[:32],
    }


def _arrays(
    traces: TraceSet, rows: np.ndarray, decode: np.ndarray, asked: np.ndarray, config: TrainingConfig
) -> tuple[np.ndarray, ...]:
    longest = int(traces.trace.lengths[rows].max())
    crop = min(-(-longest // TOKEN_BUCKET) * TOKEN_BUCKET, decode.shape[1])
    weights = np.where(decode[rows, :crop], config.decode_weight, 1.0).astype(np.float32)
    recorded = traces.embeddings[rows, :crop], traces.trace.experts[rows, :crop], weights
    return *recorded, asked[rows], *following_experts(traces.trace, rows[:, None], asked[rows])


def _check_fit(traces: TraceSet, model: PredictorConfig) -> None:
    trace = traces.trace
    recorded = (traces.width, trace.num_layers, trace.num_experts, trace.top_k)
    wanted = (model.input_width, model.moe_layers, model.num_experts, model.top_k)
    if recorded != wanted:
        raise InputError(f"traces have (width, layers, experts, top_k) = {recorded}, the predictor expects {wanted}")
