"""Trains the routing path predictor from a trace set: AdamW, warm-up and cosine decay, Orbax checkpoints,
resumable.

The sequences of a step are a pure function of (seed, step), and a checkpoint holds parameters and
optimizer state, so a killed run that resumes ends with the same loss as an uninterrupted one.
Axes: N sequences, B batch, T tokens, D width of the served model, L MoE layers, E experts, K top-k.
"""

import dataclasses
import functools
import hashlib
import json
import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
from flax import nnx
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.progress import TimeRemainingColumn as Remaining

from expertflow_jax.errors import InputError
from expertflow_jax.predictor.calibration import fit_layers
from expertflow_jax.predictor.losses import LOSSES, routing_loss
from expertflow_jax.predictor.model import PredictorConfig, RoutingPathPredictor
from expertflow_jax.predictor.runtime import Predictor
from expertflow_jax.routing.statistics import popularity
from expertflow_jax.routing.trace import RoutingTrace
from expertflow_jax.routing.trace_set import TraceSet

TOKEN_BUCKET = 8  # batches are cropped to a multiple of this, which bounds the number of compilations


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
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        optax.adamw(
            schedule,
            b2=0.98,
            weight_decay=config.weight_decay,
            mask=lambda params: jax.tree.map(lambda p: p.ndim >= 2, params),
        ),
    )


def _make_step(graph, optimizer: optax.GradientTransformation, config: TrainingConfig) -> Callable:
    score = functools.partial(routing_loss, kind=config.loss, positive_weight=config.positive_weight)

    def loss(params, embeddings, experts, token_weights, before, after, counted):
        logits, following, _ = nnx.merge(graph, params)(embeddings, before=before)
        own = score(logits, experts, token_weights=token_weights)
        return own + config.following_weight * score(following, after, counted=counted)

    @functools.partial(jax.jit, donate_argnums=0)
    def step(state, *batch):
        value, grads = jax.value_and_grad(loss)(state["params"], *batch)
        updates, opt_state = optimizer.update(grads, state["opt_state"], state["params"])
        params = optax.apply_updates(state["params"], updates)
        return {"params": params, "opt_state": opt_state}, value, optax.global_norm(grads)

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
      workdir: holds `checkpoints/` (Orbax), `metrics.jsonl` and `training_config.json`.
      on_step: called with each finished step's index.

    Returns:
      The predictor, calibrated, and {"steps", "loss" (last), "train_seconds" (this process)}.

    Raises:
      InputError: traces and model do not fit, or the workdir belongs to another run.
      FloatingPointError: the loss is not finite.
    """
    _check_fit(traces, model)
    folder = Path(workdir)
    folder.mkdir(parents=True, exist_ok=True)
    _check_same_run(folder / "training_config.json", model, config, traces)
    frequency = popularity(traces.trace)
    module = RoutingPathPredictor(model, rngs=nnx.Rngs(config.seed))
    decode = traces.trace.token_mask("decode")
    answered = popularity(traces.trace, phase="decode") if decode.any() else frequency
    module.heads.bias[...] = jnp.asarray(initial_bias(frequency))
    module.following.bias[...] = jnp.asarray(initial_bias(answered))
    graph, params = nnx.split(module)
    optimizer = make_optimizer(config)
    state: dict[str, Any] = {"params": params, "opt_state": optimizer.init(params)}
    step_function = _make_step(graph, optimizer, config)
    batches = BatchOrder(len(traces), config.batch_size, config.seed)
    asked = following_places(traces.trace)

    options = ocp.CheckpointManagerOptions(max_to_keep=2)
    summary: dict[str, Any] = {"steps": config.steps}
    with ocp.CheckpointManager((folder / "checkpoints").absolute(), options=options) as manager:
        first = 0
        if (latest := manager.latest_step()) is not None:
            abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, state)
            state = manager.restore(latest, args=ocp.args.StandardRestore(abstract))
            first = latest
        log = _MetricsLog(folder / "metrics.jsonl", keep_below=first)
        with _progress(show_progress) as progress, log:
            bar = progress.add_task("predictor", total=config.steps, completed=first, note="compiling")
            began = time.perf_counter()
            for step in range(first, config.steps):
                rows = batches(step)
                state, loss, norm = step_function(state, *_arrays(traces, rows, decode, asked, config))
                done = step + 1
                save = done % config.checkpoint_every == 0 or done == config.steps
                if save or step % config.log_every == 0:
                    value = float(loss)
                    if not math.isfinite(value):
                        raise FloatingPointError(
                            f"predictor loss is {value} at step {step}; lower training.learning_rate"
                        )
                    log.add(step=step, loss=value, grad_norm=float(norm))
                    progress.update(bar, completed=done, note=f"loss {value:.4f}")
                if save:
                    manager.save(done, args=ocp.args.StandardSave(state))
                if on_step is not None:
                    on_step(step)
            manager.wait_until_finished()
            summary |= {"loss": log.last_loss, "train_seconds": time.perf_counter() - began}
    predictor = Predictor(
        model, state["params"], popularity=frequency, model_fingerprint=traces.trace.model_fingerprint
    )
    return calibrate(predictor, held_out if held_out is not None else traces), summary


def calibrate(predictor: Predictor, traces: TraceSet, *, sequences: int = 2000) -> Predictor:
    """The same predictor with its probabilities fitted to (the first `sequences` of) `traces`."""
    part = traces.select(slice(0, sequences))
    trace, inside, asked = part.trace, part.trace.token_mask(), following_places(part.trace)
    own, following = predict(predictor, part)
    rows = np.arange(len(trace))[:, None]
    after, counted = _following(trace, rows, asked)
    routed = (trace.experts[inside] >= 0).any(-1)
    sets = (own[inside], trace.experts[inside], routed), (following[rows, asked], after, counted)
    fitted = [
        fit_layers(_uncalibrated(predictor, i, probs), experts, counts)
        for i, (probs, experts, counts) in enumerate(sets)
    ]
    scale, bias = (np.stack(values) for values in zip(*fitted, strict=True))
    return Predictor(
        predictor.config,
        predictor.parameters,
        scale=scale,
        bias=bias,
        popularity=predictor.popularity,
        model_fingerprint=predictor.model_fingerprint,
        provenance=predictor.provenance,
        metrics=predictor.metrics,
    )


def _uncalibrated(predictor: Predictor, which: int, probs: np.ndarray) -> np.ndarray:
    """The predictor's own logits of probabilities [..., L, E], float64 [n, L, E]: a fit starts from these."""
    probs = probs.astype(np.float64).reshape(-1, *probs.shape[-2:])
    odds = np.log(np.maximum(probs, 1e-30)) - np.log(np.maximum(1 - probs, 1e-30))
    scale, bias = np.asarray(predictor.scale)[which], np.asarray(predictor.bias)[which]
    return (odds - bias[:, None]) / scale[:, None]


def predict(predictor: Predictor, traces: TraceSet, *, batch_size: int = 64) -> tuple[np.ndarray, np.ndarray]:
    """Forecasts of all tokens, each from those up to itself, and of the tokens after them: two float32 [N, T, L, E]
    (padding: 0)."""
    n, t = traces.embeddings.shape[:2]
    shape = (n, t, predictor.config.moe_layers, predictor.config.num_experts)
    out = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
    for begin in range(0, n, batch_size):
        rows = slice(begin, begin + batch_size)
        longest = min(t, -(-int(traces.trace.lengths[rows].max()) // TOKEN_BUCKET) * TOKEN_BUCKET)
        for whole, part in zip(out, predictor.every_token(traces.embeddings[rows, :longest]), strict=True):
            whole[rows, :longest] = part
    for whole in out:
        whole[~traces.trace.token_mask()] = 0
    return out


def following_places(trace: RoutingTrace) -> np.ndarray:
    """int32 [N, G]: the tokens of each sequence whose following one has to be forecast at run time, from the last of
    the prompt on; of traces without answers, all tokens. Places beyond a sequence's end repeat its last token."""
    first, longest = trace.prompt_lengths - 1, int((trace.lengths - trace.prompt_lengths).max(initial=0))
    if longest == 0:
        first, longest = np.zeros_like(trace.lengths), trace.experts.shape[1] - 1
    places = first[:, None] + np.arange(longest + 1)
    return np.minimum(places, np.maximum(trace.lengths - 1, 0)[:, None]).astype(np.int32)


def _following(trace: RoutingTrace, rows: np.ndarray, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What comes after `places` [B, G] of sequences `rows` [B, 1].

    Returns:
      int32 [B, G, L, K], experts of the following token, -1 where the sequence ends; and bool [B, G, L], what counts:
      the layers that the token itself goes through, each place once. The end of a sequence counts, as a token that
      uses no expert: a horizon is of what will be used.
    """
    last = trace.lengths[rows] - 1
    after = trace.experts[rows, np.minimum(places + 1, trace.experts.shape[1] - 1)]
    after = np.where((places < last)[..., None, None], after, -1)
    new = np.diff(places, axis=1, prepend=-1) > 0
    return after, (trace.experts[rows, places] >= 0).any(-1) & new[..., None]


def _arrays(
    traces: TraceSet, rows: np.ndarray, decode: np.ndarray, asked: np.ndarray, config: TrainingConfig
) -> tuple[np.ndarray, ...]:
    longest = int(traces.trace.lengths[rows].max())
    crop = min(-(-longest // TOKEN_BUCKET) * TOKEN_BUCKET, decode.shape[1])
    weights = np.where(decode[rows, :crop], config.decode_weight, 1.0).astype(np.float32)
    own = traces.embeddings[rows, :crop], traces.trace.experts[rows, :crop], weights
    return *own, asked[rows], *_following(traces.trace, rows[:, None], asked[rows])


def _check_fit(traces: TraceSet, model: PredictorConfig) -> None:
    trace = traces.trace
    found = (traces.width, trace.num_layers, trace.num_experts, trace.top_k)
    wanted = (model.input_width, model.moe_layers, model.num_experts, model.top_k)
    if found != wanted:
        raise InputError(f"traces have (width, layers, experts, top_k) = {found}, the predictor expects {wanted}")


def _check_same_run(path: Path, model: PredictorConfig, config: TrainingConfig, traces: TraceSet) -> None:
    """Refuses to continue a run with another config or other traces: it would be neither run."""
    checksum = traces.checksum or hashlib.sha256(traces.trace.experts.tobytes()).hexdigest()[:32]
    wanted = {
        "model": model.to_dict(),
        "training": dataclasses.asdict(config),
        "model_fingerprint": traces.trace.model_fingerprint,
        "traces": checksum,
    }
    if not path.exists():
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        temporary.write_text(json.dumps(wanted, indent=1, sort_keys=True) + "\n")
        os.replace(temporary, path)
        return
    try:
        found = json.loads(path.read_text())
    except ValueError as error:
        raise InputError(f"{path}: malformed; use another --workdir") from error
    changed = [key for key in wanted if found.get(key) != json.loads(json.dumps(wanted[key]))]
    if changed:
        raise InputError(f"{path}: this workdir was started with other {', '.join(changed)}; use another --workdir")


class _MetricsLog:
    """metrics.jsonl, one row per logged step; rows that a resumed run will write again are dropped first."""

    def __init__(self, path: Path, *, keep_below: int):
        self.last_loss = math.nan
        kept = []
        for line in path.read_text().splitlines() if path.exists() else ():
            try:
                row = json.loads(line)
            except ValueError:
                continue  # the last line of a killed process
            if row["step"] < keep_below:
                kept.append(line + "\n")
                self.last_loss = row["loss"]
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        temporary.write_text("".join(kept))
        os.replace(temporary, path)
        self._file = path.open("a")

    def add(self, **row: float) -> None:
        self.last_loss = row["loss"]
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()

    def __enter__(self) -> "_MetricsLog":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


def _progress(show: bool) -> Progress:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        Remaining(),
    )
    return Progress(*columns, TextColumn("{task.fields[note]}"), disable=not show)
