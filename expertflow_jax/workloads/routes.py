"""Routing of the trained model, recorded once and replayed on other shapes, so that their locality is real.

The trained model has L = 6 layers of E = 64 experts. A shape with other numbers takes its experts from these:
- layer l' is layer l' mod 6;
- up to 64 experts: expert e' stands for all e with e mod E' = e', its score is the sum of their router probabilities;
- more: the experts of further layers, half the depth on, stand beside them (the same token's other choices);
- the K' experts of the highest score are chosen.
So tokens keep their own experts, successive tokens and tokens of one kind keep theirs in common, and popularity stays
skewed. The trained predictor's forecast goes the same way: the chance that any of an expert's members is used, its
odds scaled by one factor per token and layer so that K' experts are expected.
Axes: N sequences, T tokens, L MoE layers, E experts, K top-k, D model width; primes belong to the shape.
"""

import dataclasses
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np

from expertflow_jax.inference.layer_stages import Attended
from expertflow_jax.inference.loading import LoadedModel
from expertflow_jax.inference.served import serve
from expertflow_jax.offload.variant import RESIDENT
from expertflow_jax.processing.batching import Prompt, pad_prompts


@dataclasses.dataclass(frozen=True)
class Recording:
    """What the trained model did on N prompts, T tokens at most, answers included.

    Attributes:
      prompts: as encoded.
      tokens: int32 [N, G], greedy continuation.
      prompt_lengths: int32 [N]; token `prompt_lengths[n] + g` is the g-th of the continuation.
      embeddings: float32 [N, T, D], input embeddings, images merged in.
      probs: float32 [N, T, L, E], router probabilities.
    """

    prompts: Sequence[Prompt]
    tokens: np.ndarray
    prompt_lengths: np.ndarray
    embeddings: np.ndarray
    probs: np.ndarray

    def long_answers(self, stop_ids: Collection[int]) -> "Recording":
        """The sequences whose answer has at least G tokens: beyond an answer's end routing is no longer what the model
        was trained on."""
        return self.take(np.flatnonzero(~np.isin(self.tokens, list(stop_ids)).any(1)))

    def first(self, count: int) -> "Recording":
        """The first `count` sequences."""
        return self.take(np.arange(count))

    def take(self, rows: np.ndarray) -> "Recording":
        """These sequences, in this order."""
        arrays = (self.tokens, self.prompt_lengths, self.embeddings, self.probs)
        return Recording([self.prompts[row] for row in rows.tolist()], *(array[rows] for array in arrays))


class TappedStages:
    """Stages whose routers are overheard; everything else is passed on."""

    def __init__(self, stages: Any):
        self._stages = stages
        self.heard: list[np.ndarray] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stages, name)

    def attend_and_route(self, layer: int, x: Any, kv: Any, *where: Any) -> Attended:
        attended = self._stages.attend_and_route(layer, x, kv, *where)
        self.heard.append(np.asarray(attended.probs))
        return attended


class ReplayedStages:
    """Stages whose routers are overruled: attention, router and the host's wait for it run, the choice is replayed."""

    def __init__(self, stages: Any):
        self.original = stages
        self._ahead: list[np.ndarray] = []
        self._next = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.original, name)

    def foretell(self, steps: Sequence[Sequence[np.ndarray]]) -> None:
        """What each member of the following super-steps chooses: int32 [B, T, L, K] each, -1 on padding."""
        self._ahead = [
            np.ascontiguousarray(ids_BxTxLxK[:, :, layer])
            for members in steps
            for layer in range(members[0].shape[2])
            for ids_BxTxLxK in members
        ]
        self._next = 0

    def attend_and_route(self, layer: int, x: Any, kv: Any, *where: Any) -> Attended:
        attended = self.original.attend_and_route(layer, x, kv, *where)
        np.asarray(attended.ids)  # the wait is part of a step
        self._next += 1
        return attended._replace(ids=self.original.locate(self._ahead[self._next - 1])[0])


def record(model: LoadedModel, prompts: Sequence[Prompt], new_tokens: int, batch_size: int = 32) -> Recording:
    """Runs the trained model with everything resident and writes down its routing.

    Args:
      new_tokens: G.
    """
    store = model.store
    tapped: Any = TappedStages(model.stages)
    longest = max(len(prompt.input_ids) for prompt in prompts) + new_tokens
    width = model.config.text.hidden_size
    embeddings = np.zeros((len(prompts), longest, width), np.float32)
    probs = np.zeros((len(prompts), longest, store.num_layers, store.num_experts), np.float32)
    tokens = np.zeros((len(prompts), new_tokens), np.int32)
    lengths = np.array([len(prompt.input_ids) for prompt in prompts], np.int32)
    with serve(model, RESIDENT, stages=tapped) as session:
        for first in range(0, len(prompts), batch_size):
            rows = np.arange(first, min(first + batch_size, len(prompts)))
            batch = pad_prompts(model.config, [prompts[i] for i in rows.tolist()], batch_size)
            x, deepstack = session.embed(batch)
            sequences = session.start(batch, new_tokens)
            tapped.heard.clear()
            hidden = session.prefill(batch, sequences, x, deepstack, None)
            width = min(longest, x.shape[1])
            inside = (np.arange(width) < lengths[rows, None])[..., None]
            embeddings[rows, :width] = np.where(inside, np.asarray(x)[: len(rows), :width], 0)
            heard = np.stack(tapped.heard, axis=2)[: len(rows), :width]
            probs[rows, :width] = np.where(inside[..., None], heard, 0)
            logits = session.last_logits(hidden, batch.lengths)
            active = np.arange(batch_size) < len(rows)
            for step in range(new_tokens):
                chosen = logits.argmax(-1).astype(np.int32)
                tokens[rows, step] = chosen[: len(rows)]
                x = session.stages.embed(np.where(active, chosen, 0)[:, None].astype(np.int32), None, None)
                tapped.heard.clear()
                hidden = session.decode(sequences, x, active, None)
                embeddings[rows, lengths[rows] + step] = np.asarray(x)[: len(rows), 0]
                probs[rows, lengths[rows] + step] = np.stack(tapped.heard, axis=2)[: len(rows), 0]
                logits = session.last_logits(hidden, active.astype(np.int32))
    return Recording(list(prompts), tokens, lengths, embeddings, probs)


def choices(probs: np.ndarray, num_layers: int, num_experts: int, top_k: int) -> np.ndarray:
    """The shape's routing: probs [..., L, E] -> int32 [..., L', K'], best first."""
    return best(scores(probs, num_layers, num_experts), top_k)


def scores(probs: np.ndarray, num_layers: int, num_experts: int) -> np.ndarray:
    """What the shape's experts are chosen by: probs [..., L, E] -> [..., L', E']."""
    return np.stack([m.sum(-1) for m in _members(probs, num_layers, num_experts)], axis=-1)


def best(scores: np.ndarray, top_k: int) -> np.ndarray:
    """The K' experts of the highest score: [..., E'] -> int32 [..., K'], best first."""
    chosen = np.argpartition(-scores, top_k - 1, axis=-1)[..., :top_k]
    order = np.argsort(-np.take_along_axis(scores, chosen, -1), axis=-1, kind="stable")
    return np.take_along_axis(chosen, order, -1).astype(np.int32)


def forecasts(use: np.ndarray, num_layers: int, num_experts: int, top_k: int) -> np.ndarray:
    """The shape's forecast: use [..., L, E], P(token uses expert) -> float32 [..., L', E'], summing to K'."""
    unused = [np.prod(1 - m, axis=-1) for m in _members(use, num_layers, num_experts)]
    chance = np.clip(1 - np.stack(unused, axis=-1), 1e-6, 1 - 1e-6)
    odds = chance / (1 - chance)
    low, high = np.full((*odds.shape[:-1], 1), -20.0), np.full((*odds.shape[:-1], 1), 20.0)
    for _ in range(30):
        middle = (low + high) / 2
        scaled = odds * np.exp(middle)
        too_many = (scaled / (1 + scaled)).sum(-1, keepdims=True) > top_k
        low, high = np.where(too_many, low, middle), np.where(too_many, middle, high)
    scaled = odds * np.exp((low + high) / 2)
    return (scaled / (1 + scaled)).astype(np.float32)


def _members(values: np.ndarray, num_layers: int, num_experts: int) -> list[np.ndarray]:
    """For each of the shape's experts, the values of the trained model's experts it stands for: E' of [..., L', m]."""
    layers, experts = values.shape[-2:]
    copies = -(-num_experts // experts)
    groups = []
    for expert in range(num_experts):
        copy, first = divmod(expert, experts)
        from_layers = (np.arange(num_layers) + copy * (layers // 2)) % layers
        members = np.arange(first, experts, num_experts) if copies == 1 else np.array([first])
        groups.append(values[..., from_layers, :][..., members])
    return groups
