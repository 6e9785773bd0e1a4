"""Replays recorded routing under a miss policy on the virtual clock: what travels and how long it takes.

The routers' choices are the recorded ones throughout. What a policy loses would change the hidden states behind it and
so the later routing; that, and every answer, is beyond a replay.
Axes: N tokens, L MoE layers, E experts, K top-k.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from expertflow_jax.offload.engine import ExpertCacheEngine
from expertflow_jax.offload.misses import Decision, LayerStep, MissPolicy
from expertflow_jax.offload.misses.losses import Losses
from expertflow_jax.offload.misses.telling import split, tell
from expertflow_jax.simulation.costs import ComputeCosts
from expertflow_jax.workloads.routes import Recording, best, scores


@dataclasses.dataclass(frozen=True)
class RoutedStep:
    """One step of one batch, as the routers of a shape see it.

    Attributes:
      expert_ids: int32 [L, N, K], best first.
      router_probs: float32 [L, N, E].
      image: bool [N], tokens of an image.
      prefill: whether the step reads prompts.
    """

    expert_ids: np.ndarray
    router_probs: np.ndarray
    image: np.ndarray
    prefill: bool

    def layer_step(self, layer: int, usable: np.ndarray) -> LayerStep:
        """What the policy is told; weights are the chosen experts' probabilities, scaled to one."""
        ids, probs = self.expert_ids[layer], self.router_probs[layer]
        weights = np.take_along_axis(probs, ids, axis=1)
        weights /= weights.sum(axis=1, keepdims=True)
        prefill = np.full(len(ids), self.prefill)
        return LayerStep(layer, len(self.expert_ids), ids, weights, probs, usable, self.image, prefill)


def routed_steps(
    recording: Recording, shape: tuple[int, int, int], batch_size: int, image_token: int
) -> list[RoutedStep]:
    """Batches of `batch_size` sequences: the prompts, then a step for each token of the continuation.

    Args:
      shape: L, E, K to which the routing is carried over (`workloads.routes`).
      image_token: its id in the recorded prompts.
    """
    layers, experts, top_k = shape
    count, new_tokens = recording.tokens.shape
    steps = []
    for first in range(0, count - batch_size + 1, batch_size):
        batch = np.arange(first, first + batch_size)
        lengths = recording.prompt_lengths[batch]
        inside = np.arange(recording.probs.shape[1]) < lengths[:, None]  # [B, T]
        prompts = [recording.prompts[row].input_ids for row in batch.tolist()]
        image = np.concatenate([ids == image_token for ids in prompts])
        steps.append(_step(recording.probs[batch][inside], layers, experts, top_k, image, True))
        for token in range(new_tokens):
            probs_BxLxE = recording.probs[batch, lengths + token]
            steps.append(_step(probs_BxLxE, layers, experts, top_k, np.zeros(batch_size, bool), False))
    return steps


def _step(
    probs_NxLxE: np.ndarray, layers: int, experts: int, top_k: int, image: np.ndarray, prefill: bool
) -> RoutedStep:
    score = scores(probs_NxLxE, layers, experts)
    ids = best(score, top_k)
    probs = (score / score.sum(axis=-1, keepdims=True)).astype(np.float32)
    return RoutedStep(ids.swapaxes(0, 1), probs.swapaxes(0, 1), image, prefill)


def replay(
    engine: ExpertCacheEngine, steps: Sequence[RoutedStep], policy: MissPolicy, costs: ComputeCosts
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Runs all steps one after the other; returns `engine.stats()` and the rates of `Losses`."""
    losses = Losses()
    for step in steps:
        if step.prefill:
            engine.begin_batch()
        engine.begin_step(None)
        late_E = np.zeros(engine.store.num_experts, np.int64)  # rows that the layer before has deferred
        for layer in range(len(step.expert_ids)):
            engine.clock.spend(costs.attend_seconds(len(step.image)), "compute")
            before_E, late_E = late_E, _layer(engine, step, layer, policy, losses, costs)
            if before_E.any():
                experts = np.flatnonzero(before_E).astype(np.int32)
                _serve(engine, costs, before_E, engine.rounds(layer - 1, experts, again=True))
        engine.end_step()
    return engine.stats(), losses.rates()


def _layer(
    engine: ExpertCacheEngine, step: RoutedStep, layer: int, policy: MissPolicy, losses: Losses, costs: ComputeCosts
) -> np.ndarray:
    """One layer-step; returns the rows of every expert that it defers, int64 [E]."""
    counts_E = _counts(step.expert_ids[layer], engine)
    asked, decision = None, None
    if not policy.lossless:
        asked = step.layer_step(layer, engine.usable(layer))
        decision = policy.decide(asked)
        losses.add(asked, decision)
    if asked is None or decision is None or decision.as_chosen:
        experts = np.flatnonzero(counts_E).astype(np.int32)
        _serve(engine, costs, counts_E, engine.rounds(layer, experts, counts_E))
        return np.zeros_like(counts_E)
    rows_E, late_E = _rows(decision, engine)
    tell(engine, policy, asked, decision, counts_E, rows_E > 0)
    experts, put_off = (np.flatnonzero(rows).astype(np.int32) for rows in (rows_E, late_E))
    rounds = engine.rounds(layer, experts, counts_E, decision.quantized, put_off if len(put_off) else None)
    _serve(engine, costs, rows_E, rounds)
    return late_E


def _rows(decision: Decision, engine: ExpertCacheEngine) -> tuple[np.ndarray, np.ndarray]:
    now, late = split(decision.expert_ids, decision.deferred)
    return _counts(now, engine), _counts(now[:0] if late is None else late, engine)


def _counts(ids: np.ndarray, engine: ExpertCacheEngine) -> np.ndarray:
    return np.bincount(ids[ids >= 0], minlength=engine.store.num_experts)


def _serve(engine: ExpertCacheEngine, costs: ComputeCosts, rows_E: np.ndarray, rounds: Any) -> None:
    for experts, _ in rounds:
        if rows := [count for count in rows_E[list(experts)].tolist() if count]:
            engine.clock.spend(costs.experts_seconds(rows), "compute")
