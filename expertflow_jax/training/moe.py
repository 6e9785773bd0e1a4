"""Trains the small MoE vision-language model on a stream of digit scenes, resumably.

The batch of a step is a pure function of (seed, step), so a killed run that resumes from its newest Orbax
checkpoint ends with the same loss as an uninterrupted one. What is exported is the exponential moving average of
the parameters, in the Hugging Face layout.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
from flax import nnx

from expertflow_jax.harness.workdir import Workdir
from expertflow_jax.models.qwen3_vl_moe import Qwen3VLMoe, Qwen3VLMoeConfig
from expertflow_jax.training import losses
from expertflow_jax.training.loop import State, adamw, run_steps

Batch = dict[str, np.ndarray]


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
    return adamw(learning_rate(config), weight_decay=config.weight_decay, clip_norm=config.clip_norm, b2=config.adam_b2)


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
    workdir: Workdir,
    *,
    batch_at: Callable[[int], Batch],
    held_out: Callable[[], list[tuple[str, Batch]]],
    forward: Callable[[Qwen3VLMoe, Batch], Any],
    start: Callable[[Qwen3VLMoe], nnx.State] | None = None,
    on_step: Callable[[int], None] | None = None,
) -> tuple[Qwen3VLMoe, dict[str, float]]:
    """Trains to `config.steps`, from the newest checkpoint in `workdir` if there is one.

    Args:
      config: see configs/digit_scenes_moe.py.
      model_config: architecture.
      workdir: of this config; see `run_steps` for what it gets.
      batch_at: step -> batch; a pure function of the step.
      held_out: gives (group name, batch) pairs to measure exact match on.
      forward: (module, batch) -> ForwardOutput.
      start: makes the first parameters of a fresh module; None: they are its own.
      on_step: called with the number of each finished step.

    Returns:
      The module with averaged parameters, and the metrics of the last step (those logged, if the run had ended before).

    Raises:
      FloatingPointError: the loss is not finite.
    """
    module = Qwen3VLMoe(model_config, rngs=nnx.Rngs(config.seed))
    graphdef, params = nnx.split(module)
    if start is not None:
        params = start(module)
    optimizer = make_optimizer(config)
    state: State = {
        "params": params,
        "average": jax.tree.map(jnp.copy, params),
        "opt_state": optimizer.init(params),
    }
    train_step = make_train_step(make_loss(graphdef, forward, config), optimizer, config.ema_decay)
    evaluate = make_evaluate(graphdef, forward, config.eval_group)

    def step(state: State, number: int) -> tuple[State, dict[str, jax.Array]]:
        return train_step(state, batch_at(number), np.float32(number))

    def measure(state: State, number: int) -> dict[str, float]:
        is_asked = number > 0 and number % config.eval_every == 0
        if not is_asked and number < config.steps - 1:
            return {}
        return _held_out_metrics(evaluate, state["average"], held_out())

    state, metrics = run_steps(
        state,
        step,
        workdir,
        steps=config.steps,
        log_every=config.log_every,
        checkpoint_every=config.checkpoint_every,
        name="train",
        measure=measure,
        on_step=on_step,
    )
    return nnx.merge(graphdef, state["average"]), metrics


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
