"""Distils pre-gates from a model's routers: records residual streams and what the next router said, trains, measures.

Axes: N tokens, G = L - 1 gates, D model width, H gate width, E experts, K top-k, B sequences, T tokens of a sequence.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
from jaxtyping import Float
from rich.console import Console

from expertflow_jax import cli
from expertflow_jax.errors import InputError
from expertflow_jax.harness.cells import number
from expertflow_jax.harness.data import prepare, read
from expertflow_jax.harness.inputs import claimed_workdir, model_files, split_files
from expertflow_jax.harness.workdir import Workdir
from expertflow_jax.inference.layer_stages import Attended
from expertflow_jax.inference.loading import LoadedModel, load_model
from expertflow_jax.inference.served import serve
from expertflow_jax.locate import locate
from expertflow_jax.offload.variant import RESIDENT
from expertflow_jax.predictor.pregates import PreGates, gate_logits, save_pregates
from expertflow_jax.processing.batching import Prompt, pad_prompts
from expertflow_jax.tasks.provided import data_folder
from expertflow_jax.tasks.registry import make_task
from expertflow_jax.training.loop import adamw, run_steps


@dataclasses.dataclass(frozen=True)
class Lessons:
    """What gates learn from.

    Attributes:
      streams: float32 [G, N, D], the residual stream in every MoE layer but the last.
      targets: float32 [G, N, E], what the router of the next one said of the same token.
      speculated: float32 [G, N, E], what that router says of this stream, for comparison.
    """

    streams: Float[np.ndarray, "G N D"]
    targets: Float[np.ndarray, "G N E"]
    speculated: Float[np.ndarray, "G N E"]

    def tokens(self, which: slice) -> "Lessons":
        return Lessons(self.streams[:, which], self.targets[:, which], self.speculated[:, which])


class _HeardStages:
    """Stages that note the residual streams and router probabilities of a step."""

    def __init__(self, stages: Any):
        self._stages = stages
        self.heard: list[tuple[jax.Array, jax.Array]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stages, name)

    def attend_and_route(self, layer: int, x: Any, kv: Any, *where: Any) -> Attended:
        attended = self._stages.attend_and_route(layer, x, kv, *where)
        self.heard.append((attended.h, attended.probs))
        return attended


def lessons(model: LoadedModel, prompts: list[Prompt], new_tokens: int, batch_size: int) -> Lessons:
    """Of the prompts' tokens and of the first `new_tokens` of their greedy answers, in order of sequences."""
    stages = _HeardStages(model.stages)
    parts: list[Lessons] = []
    with serve(model, RESIDENT, stages=stages) as session:
        for first in range(0, len(prompts) - batch_size + 1, batch_size):
            batch = pad_prompts(model.config, prompts[first : first + batch_size], batch_size)
            x, deepstack = session.embed(batch)
            sequences = session.start(batch, new_tokens)
            hidden = session.prefill(batch, sequences, x, deepstack, None)
            parts.append(_lessons_of(model, stages, np.arange(x.shape[1]) < batch.lengths[:, None]))
            lengths, active = batch.lengths, np.ones(batch_size, bool)
            for _ in range(new_tokens):
                tokens_B1 = session.last_logits(hidden, lengths).argmax(-1).astype(np.int32)[:, None]
                hidden = session.decode(sequences, session.stages.embed(tokens_B1, None, None), active, None)
                parts.append(_lessons_of(model, stages, active[:, None]))
                lengths = active.astype(np.int32)
    arrays = (np.concatenate([getattr(p, f.name) for p in parts], axis=1) for f in dataclasses.fields(Lessons))
    return Lessons(*arrays)


def _lessons_of(model: LoadedModel, stages: _HeardStages, inside_BT: np.ndarray) -> Lessons:
    streams, probs = zip(*stages.heard, strict=True)
    stages.heard.clear()
    following = model.stages.moe_layers[1:]
    speculated = [model.stages.next_router(layer, h) for layer, h in zip(following, streams, strict=False)]

    def inside(arrays: Sequence[jax.Array]) -> np.ndarray:
        return np.stack([np.asarray(array, np.float32)[inside_BT] for array in arrays])

    return Lessons(inside(streams[:-1]), inside(probs[1:]), inside(speculated))


def recall(said: Float[np.ndarray, "G N E"], targets: Float[np.ndarray, "G N E"], top_k: int) -> list[float]:
    """Share of each layer's `top_k` experts that are among the `top_k` that were said, per gate."""
    picks, truth = (np.argpartition(-a, top_k - 1, axis=-1)[..., :top_k] for a in (said, targets))
    met_GNK = (picks[..., :, None] == truth[..., None, :]).any(-2)
    return [round(float(share), 4) for share in met_GNK.mean((1, 2))]


def train(config: ml_collections.ConfigDict, data: Lessons, place: Workdir, show_progress: bool = True) -> Any:
    """Gates whose cross-entropy to the routers' probabilities is least; resumes from the workdir's checkpoint.

    Returns:
      The parameters {"inner", "outer"}, and the last logged row.
    """
    gates, tokens, width = data.streams.shape
    experts = data.targets.shape[-1]
    inner, outer = jax.random.split(jax.random.key(config.seed))
    params = {
        "inner": jax.random.normal(inner, (gates, width, config.hidden)) * width**-0.5,
        "outer": jax.random.normal(outer, (gates, config.hidden, experts)) * config.hidden**-0.5,
    }
    rate = optax.cosine_decay_schedule(config.learning_rate, config.steps)
    optimizer = adamw(rate, weight_decay=config.weight_decay, clip_norm=1.0, b2=0.98)

    def loss(params: Any, streams: jax.Array, targets: jax.Array) -> jax.Array:
        logits = jax.vmap(gate_logits)(params["inner"], params["outer"], streams)
        return optax.softmax_cross_entropy(logits, targets).mean()

    @jax.jit
    def update(state: Any, streams: jax.Array, targets: jax.Array) -> tuple[Any, jax.Array]:
        value, gradients = jax.value_and_grad(loss)(state["params"], streams, targets)
        updates, optimizer_state = optimizer.update(gradients, state["optimizer"], state["params"])
        return {"params": optax.apply_updates(state["params"], updates), "optimizer": optimizer_state}, value

    def step(state: Any, number: int) -> tuple[Any, dict[str, jax.Array]]:
        rows = np.random.default_rng((config.seed, number)).integers(tokens, size=config.batch_tokens)
        state, value = update(state, jnp.asarray(data.streams[:, rows]), jnp.asarray(data.targets[:, rows]))
        return state, {"loss": value}

    state, row = run_steps(
        {"params": params, "optimizer": optimizer.init(params)},
        step,
        place,
        steps=config.steps,
        log_every=config.log_every,
        checkpoint_every=config.checkpoint_every,
        name="pre-gates",
        show_progress=show_progress,
    )
    return state["params"], row


def check(config: ml_collections.ConfigDict) -> None:
    """Raises InputError for values that cannot be."""
    for key in ("sequences", "new_tokens", "record_batch_size", "hidden", "steps", "batch_tokens", "log_every"):
        number(1)(f"config key {key}", config[key])
    number(0.0, 1.0, above=True)("config key held_out", config.held_out)
    if config.sequences < config.record_batch_size:
        raise InputError(f"config key sequences: {config.sequences} are less than one batch; lower record_batch_size")


def train_and_export(invocation: cli.Invocation) -> Path:
    """Everything, in the workdir; returns the export's folder."""
    config, workdir = invocation.config, invocation.workdir
    assert workdir is not None
    check(config)
    with claimed_workdir(
        workdir, config, model_files(config.model) | split_files(config, [(config.task, "train")])
    ) as place:
        model = load_model(str(locate(config.model)))
        data = lessons(model, _prompts(config, model, workdir), config.new_tokens, config.record_batch_size)
        kept = int(data.streams.shape[1] * (1 - config.held_out))
        params, row = train(config, data.tokens(slice(kept)), place)
        gates = PreGates(params["inner"], params["outer"], model.fingerprint)
        unseen, top_k = data.tokens(slice(kept, None)), model.config.text.num_experts_per_tok
        said = np.stack([np.asarray(gates.probs(g, jnp.asarray(h))) for g, h in enumerate(unseen.streams)])
        facts = {
            "command": " ".join(["python -m train.pregate", f"--config={invocation.config_path}", "--workdir=DIR"]),
            "seed": config.seed,
            "steps": config.steps,
            "loss": row["loss"],
            "recall": recall(said, unseen.targets, top_k),
            "recall_of_next_router": recall(unseen.speculated, unseen.targets, top_k),
        }
        export = workdir / "export"
        save_pregates(dataclasses.replace(gates, facts=facts), export)
    Console().print(
        f"recall at {top_k} by layer: gates {facts['recall']}, next router {facts['recall_of_next_router']}; "
        f"exported to {export}"
    )
    return export


def _prompts(config: ml_collections.ConfigDict, model: LoadedModel, workdir: Path) -> list[Prompt]:
    task = make_task(config.task, data_folder(config, workdir), "train", prepared_dir=workdir / "tfds")
    return prepare(model, task, read(task, config.sequences), config.sequences, 0).prompts
