"""Trains the small MoE vision-language model on a stream of digit scenes, resumably.

The batch of a step is a pure function of (seed, step), so a killed run that resumes from its newest Orbax
checkpoint ends with the same loss as an uninterrupted one. What is exported is the exponential moving average of
the parameters, in the Hugging Face layout.
"""

import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
import orbax.checkpoint as ocp
from flax import nnx
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from expertflow_jax.errors import InputError
from expertflow_jax.models.qwen3_vl_moe import Qwen3VLMoe, Qwen3VLMoeConfig
from expertflow_jax.training import losses

Batch = dict[str, np.ndarray]
State = dict[str, Any]


def learning_rate(config: ml_collections.ConfigDict) -> optax.Schedule:
    """Warm-up and cosine decay over `decay_steps`; with a second stage, from its step on another cosine to the end."""
    final = config.final_lr_fraction
    first = optax.warmup_cosine_decay_schedule(
        0.0, config.learning_rate, config.warmup_steps, config.decay_steps, config.learning_rate * final
    )
    if "second_stage" not in config or config.second_stage.step >= config.steps:  # a run that ends before it
        return first
    second = config.second_stage
    again = optax.cosine_decay_schedule(second.learning_rate, config.steps - second.step, final)
    return optax.join_schedules([first, again], [second.step])


def make_optimizer(config: ml_collections.ConfigDict) -> optax.GradientTransformation:
    """AdamW; weight decay on matrices only."""
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        optax.adamw(
            learning_rate(config),
            b1=0.9,
            b2=config.adam_b2,
            weight_decay=config.weight_decay,
            mask=lambda params: jax.tree.map(lambda p: p.ndim >= 2, params),
        ),
    )


def make_loss(graphdef: nnx.GraphDef, forward: Callable, config: ml_collections.ConfigDict) -> Callable:
    """`loss(params, batch) -> (scalar, metrics)` for a module split into `graphdef` and `params`."""

    def loss(params: nnx.State, batch: Batch) -> tuple[jax.Array, dict[str, jax.Array]]:
        output = forward(nnx.merge(graphdef, params), batch)
        cross_entropy = losses.answer_cross_entropy(output.logits, batch["input_ids"], batch["answer_mask"])
        balance = losses.load_balancing_loss(output.router_probs, output.expert_ids)
        total = cross_entropy + config.balance_weight * balance
        metrics = {
            "loss": total,
            "cross_entropy": cross_entropy,
            "balance": balance,
            "exact_match": losses.exact_match(output.logits, batch["input_ids"], batch["answer_mask"]).mean(),
        }
        return total, metrics

    return loss


def make_train_step(loss: Callable, optimizer: optax.GradientTransformation, ema_decay: float) -> Callable:
    """One jitted, donated update of `{params, average, opt_state}`."""

    def step(state: State, batch: Batch, index: jax.Array) -> tuple[State, dict[str, jax.Array]]:
        (_, metrics), grads = jax.value_and_grad(loss, has_aux=True)(state["params"], batch)
        updates, opt_state = optimizer.update(grads, state["opt_state"], state["params"])
        params = optax.apply_updates(state["params"], updates)
        decay = jnp.minimum(ema_decay, (1.0 + index) / (10.0 + index))  # short memory while young
        average = jax.tree.map(lambda a, p: decay * a + (1 - decay) * p, state["average"], params)
        metrics["grad_norm"] = optax.global_norm(grads)
        return {"params": params, "average": average, "opt_state": opt_state}, metrics

    return jax.jit(step, donate_argnums=0)


def make_evaluate(graphdef: nnx.GraphDef, forward: Callable, group: int) -> Callable:
    """Jitted `evaluate(params, batch) -> (exact match bool [B], distinct experts [L] per `group` sequences)`."""

    @jax.jit
    def evaluate(params: nnx.State, batch: Batch) -> tuple[jax.Array, jax.Array]:
        output = forward(nnx.merge(graphdef, params), batch)
        match = losses.exact_match(output.logits, batch["input_ids"], batch["answer_mask"])
        return match, losses.distinct_experts(output.expert_ids, output.router_probs.shape[-1], group)

    return evaluate


def train(
    config: ml_collections.ConfigDict,
    model_config: Qwen3VLMoeConfig,
    workdir: Path,
    *,
    batch_at: Callable[[int], Batch],
    held_out: Callable[[], list[tuple[str, Batch]]],
    forward: Callable[[Qwen3VLMoe, Batch], Any],
    stop_at: int | None = None,
) -> tuple[Qwen3VLMoe, dict[str, float]]:
    """Trains to `config.steps`, from the newest checkpoint in `workdir` if there is one.

    Args:
      config: see configs/digit_scenes_moe.py.
      model_config: architecture.
      workdir: holds `checkpoints/` (Orbax) and `metrics.jsonl`.
      batch_at: step -> batch; a pure function of the step.
      held_out: gives (group name, batch) pairs to measure exact match on.
      forward: (module, batch) -> ForwardOutput.
      stop_at: stop after this step as if killed (checkpoint not forced); for tests of resumption.

    Returns:
      The module with averaged parameters, and the last metrics (those logged, if the run had ended before).

    Raises:
      InputError: the workdir's checkpoint belongs to another config.
      FloatingPointError: the loss is not finite.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    _check_same_run(workdir / "train_config.json", config)
    module = Qwen3VLMoe(model_config, rngs=nnx.Rngs(config.seed))
    graphdef, params = nnx.split(module)
    optimizer = make_optimizer(config)
    state: State = {
        "params": params,
        "average": jax.tree.map(jnp.copy, params),
        "opt_state": optimizer.init(params),
    }
    train_step = make_train_step(make_loss(graphdef, forward, config), optimizer, config.ema_decay)
    evaluate = make_evaluate(graphdef, forward, config.eval_group)

    options = ocp.CheckpointManagerOptions(max_to_keep=2, save_interval_steps=config.checkpoint_every)
    with ocp.CheckpointManager((workdir / "checkpoints").absolute(), options=options) as manager:
        first = 0
        if (latest := manager.latest_step()) is not None:
            abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, state)
            state = manager.restore(latest, args=ocp.args.StandardRestore(abstract))
            first = latest + 1
        metrics = _last_metrics(workdir / "metrics.jsonl") if first >= config.steps else {}
        with _progress() as progress, (workdir / "metrics.jsonl").open("a") as log:
            bar = progress.add_task("train", total=config.steps, completed=first, note="compiling")
            began = time.perf_counter()
            for index in range(first, config.steps):
                state, measured = train_step(state, batch_at(index), np.float32(index))
                last = index == config.steps - 1
                if index % config.log_every == 0 or last:
                    metrics = {k: float(v) for k, v in measured.items()}
                    if not math.isfinite(metrics["loss"]):
                        raise FloatingPointError(f"loss is {metrics['loss']} at step {index}; lower learning_rate")
                    seconds = (time.perf_counter() - began) / (index - first + 1)
                    metrics |= {"step": index, "seconds_per_step": seconds}
                    if (index and index % config.eval_every == 0) or last:
                        metrics |= _held_out_metrics(evaluate, state["average"], held_out())
                    log.write(json.dumps(metrics) + "\n")
                    log.flush()
                    note = f"loss {metrics['loss']:.3f} train {metrics['exact_match']:.2f}"
                    progress.update(bar, completed=index + 1, note=note)
                manager.save(index, args=ocp.args.StandardSave(state), force=last)
                if stop_at is not None and index >= stop_at:
                    break
        manager.wait_until_finished()
    return nnx.merge(graphdef, state["average"]), metrics


def _last_metrics(path: Path) -> dict[str, float]:
    """Of a run that has ended: what its last step measured."""
    lines = path.read_text().splitlines() if path.exists() else []
    return json.loads(lines[-1]) if lines else {}


def _held_out_metrics(evaluate: Callable, params: nnx.State, batches: list[tuple[str, Batch]]) -> dict[str, float]:
    matches: dict[str, list[np.ndarray]] = {}
    distinct = []
    for name, batch in batches:
        match, used = evaluate(params, batch)
        matches.setdefault(name, []).append(np.asarray(match))
        distinct.append(np.asarray(used))
    result = {f"held_out/{name}": float(np.concatenate(values).mean()) for name, values in matches.items()}
    result["held_out/distinct_experts"] = float(np.mean(distinct))
    return result


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )


def _check_same_run(path: Path, config: ml_collections.ConfigDict) -> None:
    """Refuses to continue a run under another config: it would be neither the old run nor the new one."""
    wanted = json.loads(config.to_json_best_effort())
    if not path.exists():
        path.write_text(json.dumps(wanted, indent=2, sort_keys=True) + "\n")
        return
    found = json.loads(path.read_text())
    changed = sorted(k for k in wanted.keys() | found.keys() if wanted.get(k) != found.get(k))
    if changed:
        raise InputError(
            f"{path}: this workdir was started with other values of {', '.join(changed)}; use another --workdir"
        )
