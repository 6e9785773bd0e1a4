"""Records routing traces: the whole model, all experts at hand, answers prompts greedily while its routing is noted.

What is recorded is the model's own generation, prompt and answer, so the predictor learns the paths that it will meet
at run time. Every token runs once, through the same layers that the offloaded runtime steps through. Axes: B sequences,
T tokens, S cache length, L MoE layers, E experts, K top-k, M ranked experts, D model width.
"""

import dataclasses
import functools
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from expertflow_jax import interrupts
from expertflow_jax.errors import InputError
from expertflow_jax.processing import Processor
from expertflow_jax.processing.batching import Prompt, PromptBatch, for_stacks, pad_prompts
from expertflow_jax.routing.recorder import SequenceRecorder
from expertflow_jax.routing.trace import RoutingTrace
from expertflow_jax.routing.trace_set import TraceSetWriter, read_manifest
from expertflow_jax.tasks.base import Example
from expertflow_jax.tasks.encoding import encode_example

RANKED = 8  # M at most: enough to compare forecasts at four times top-2


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class StepOutput:
    """What one call of the model gives; see `Recorder.record`."""

    embeddings: jax.Array  # [B, T, D], input of the first layer
    experts: jax.Array  # int32 [B, T, L, K]
    speculative: jax.Array  # int32 [B, T, L, M]
    next_ids: jax.Array  # int32 [B], greedy


@functools.partial(jax.jit, static_argnums=0, donate_argnums=3)
def _run(graph: Any, state: Any, inputs: dict[str, Any], caches: list, images: Any, deepstack: Any) -> Any:
    """All layers on new tokens: `inputs` holds ids [B, T], positions [3, B, T], start [B], lengths [B], embed_index.

    Returns the caches and `StepOutput`.
    """
    module = nnx.merge(graph, state)
    x = embeddings = module.embed_stage(inputs["ids"], images, inputs["embed_index"])
    where = inputs["positions"], inputs["start"], inputs["lengths"]
    chosen, ranked, filled = [], [], []
    previous = None
    for i, (layer, experts) in enumerate(zip(module.layers, module.experts, strict=True)):
        if layer.is_moe:
            ranks = min(RANKED, module.config.text.num_experts)
            if previous is None:
                ranked.append(jnp.full((*x.shape[:2], ranks), -1, jnp.int32))
            else:
                ranked.append(jax.lax.top_k(layer.route(previous)[-1], ranks)[1].astype(jnp.int32))
            h, y, ids, weights, _, *cache = layer.attend_and_route(x, *caches[i], *where)
            x = experts(h, y, ids, weights)
            chosen.append(ids)
            previous = h
        else:
            x, *cache = layer.dense(x, *caches[i], *where)
        filled.append(tuple(cache))
        if deepstack is not None and i < deepstack.shape[0]:
            x = module.add_deepstack(x, deepstack[i], inputs["embed_index"])
    last = x[jnp.arange(x.shape[0]), jnp.maximum(inputs["lengths"] - 1, 0)]
    next_ids = module.head_stage(last).argmax(-1).astype(jnp.int32)
    return filled, StepOutput(embeddings, jnp.stack(chosen, 2), jnp.stack(ranked, 2), next_ids)


@functools.partial(jax.jit, static_argnums=0)
def _see(graph: Any, state: Any, pixels: jax.Array, where: Any) -> Any:
    return nnx.merge(graph, state).vision_stage(pixels, where)


class Recorder:
    """Answers batches of prompts greedily and returns their traces.

    Args:
      module: the model with its experts.
      end_ids: tokens that end an answer.
      fingerprint: of the model, kept with the traces.
    """

    def __init__(self, module: Any, end_ids: Sequence[int], fingerprint: str):
        self._config, self._dtype = module.config, module.dtype
        self._end = np.array(sorted(end_ids), np.int32)
        self._fingerprint = fingerprint
        self._graph, self._state = nnx.split(module)

    def record(
        self, prompts: Sequence[Prompt], limits: np.ndarray, *, ids: Sequence[str] = (), groups: Sequence[str] = ()
    ) -> tuple[np.ndarray, RoutingTrace, list[list[int]]]:
        """Runs one batch until every answer has ended.

        Args:
          prompts: B encoded prompts.
          limits: int [B], tokens of each answer at most; 0: behind an encoder, see `for_stacks`, `foretold`.
          ids, groups: names and labels of the sequences.

        Returns:
          Input embeddings [B, T', D] (zero where padded), the trace, and the answers' tokens. The token that ends an
          answer, and the last one within the limit, are not run through the model again and so not in the trace.
        """
        prompts = [
            for_stacks(self._config, prompt, foretold=limit == 0)
            for prompt, limit in zip(prompts, limits.tolist(), strict=True)
        ]
        batch = pad_prompts(self._config, prompts)
        room = batch.input_ids.shape[1] + int(limits.max(initial=0))
        recorder = SequenceRecorder(self._config.text.num_experts, model_fingerprint=self._fingerprint)
        caches, out = self._prefill(batch, room)
        recorder.prefill(out.embeddings, out.experts, batch.lengths, speculative=out.speculative)
        answers: list[list[int]] = [[] for _ in prompts]
        active = np.ones(len(prompts), bool)
        for index in range(room):
            token = np.asarray(out.next_ids)
            active = active & ~np.isin(token, self._end) & (index < limits)
            for row in np.flatnonzero(active):
                answers[row].append(int(token[row]))
            active = active & (index + 1 < limits)
            if not active.any():
                break
            position = np.broadcast_to(batch.next_position + index, (3, len(prompts)))[..., None]
            inputs = {
                "ids": token[:, None],
                "positions": position.astype(np.int32),
                "start": batch.lengths + index,
                "lengths": active.astype(np.int32),
                "embed_index": None,
            }
            caches, out = _run(self._graph, self._state, inputs, caches, None, None)
            recorder.decode(out.embeddings, out.experts, active=active, speculative=out.speculative)
        embeddings, trace = recorder.finish(ids, groups)
        return embeddings, trace, answers

    def _prefill(self, batch: PromptBatch, room: int) -> tuple[list, StepOutput]:
        text = self._config.text
        size = len(batch.lengths)
        shapes = [
            (size, room if cached else 0, text.num_key_value_heads, text.head_dim) for cached in text.cached_layers
        ]
        caches = [(jnp.zeros(shape, self._dtype), jnp.zeros(shape, self._dtype)) for shape in shapes]
        images = deepstack = None
        if batch.pixel_values is not None:
            images, deepstack = _see(self._graph, self._state, batch.pixel_values, batch.vision_positions)
        inputs = {
            "ids": batch.input_ids,
            "positions": batch.positions,
            "start": np.zeros(size, np.int32),
            "lengths": batch.lengths,
            "embed_index": batch.embed_index,
        }
        return _run(self._graph, self._state, inputs, caches, images, deepstack)


def is_recorded(folder: str | Path, source: Mapping[str, Any]) -> bool:
    """Whether a finished trace set of this very source is in `folder`."""
    try:
        return read_manifest(folder)["source"] == json.loads(json.dumps(source))
    except InputError:
        return False


def record(
    make_recorder: Callable[[], Recorder],
    processor: Processor | None,
    examples: Callable[[], Sequence[Example]],
    folder: str | Path,
    *,
    source: Mapping[str, Any],
    batch_size: int = 128,
    show_progress: bool = True,
) -> bool:
    """Records a trace set of examples; a finished one of the same source is kept.

    Args:
      make_recorder, examples: called only if there is something to record.
      processor: None for examples that are token ids.
      folder: for the trace set.
      source: JSON-able; all that determines the traces (model fingerprint, task, split, count, seed, ...).

    Returns:
      Whether anything was recorded.
    """
    if is_recorded(folder, source):
        return False
    recorder, todo = make_recorder(), list(examples())
    if not todo:
        raise InputError(f"{folder}: no examples to record; raise the number of examples")
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with (
        Progress(
            *columns, TimeRemainingColumn(), disable=not show_progress, auto_refresh=sys.stdout.isatty()
        ) as progress,
        TraceSetWriter(folder, source=source) as writer,
    ):
        bar = progress.add_task(f"routing traces {Path(folder).name}", total=len(todo))
        encode = functools.partial(encode_example, processor)
        for start in range(0, len(todo), batch_size):
            interrupts.check()
            part = todo[start : start + batch_size]
            # The last batch is filled up with copies, so that nothing is compiled again for it.
            full = part + [part[-1]] * (min(batch_size, len(todo)) - len(part))
            limits = np.array([e.max_new_tokens for e in full], np.int32)
            embeddings, trace, _ = recorder.record(
                [encode(e) for e in full], limits, ids=[e.id for e in full], groups=[e.group for e in full]
            )
            writer.add(embeddings[: len(part)], trace.select(slice(0, len(part))))
            progress.advance(bar, len(part))
    return True
