"""Replays recorded routing through the engine on a virtual clock, without a model: what a policy would have
done.

Axes: H steps of the horizon, L MoE layers, E experts.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from expertflow_jax.offload.engine import ExpertCacheEngine
from expertflow_jax.simulation.costs import ComputeCosts


@dataclasses.dataclass(frozen=True)
class ReplayStep:
    """One recorded step.

    Attributes:
      tokens: how many tokens it processed.
      rows: int [L, E], rows (token, choice) of every expert; zero where it was not used.
      horizon: float32 [H, L, E] forecast in force, or None.
      begins: whether a batch of sequences begins with it.
      hidden_probs: float32 [L, tokens, E], what each layer's router said of the hidden state of the MoE layer before it
        (the first layer's row is not read); None if that was not recorded.
    """

    tokens: int
    rows: np.ndarray
    horizon: np.ndarray | None = None
    begins: bool = False
    hidden_probs: np.ndarray | None = None

    @property
    def needed(self) -> np.ndarray:
        """bool [L, E]"""
        return self.rows > 0


def true_horizons(steps: Sequence[ReplayStep], look_ahead: int = 8) -> list[ReplayStep]:
    """The same steps with what really follows as their forecast (for the oracle)."""
    needed = [step.needed.astype(np.float32) for step in steps]
    return [dataclasses.replace(step, horizon=np.stack(needed[i : i + look_ahead])) for i, step in enumerate(steps)]


def replay(
    engine: ExpertCacheEngine,
    steps: Sequence[ReplayStep],
    costs: ComputeCosts,
    on_round: Callable[[int, tuple[int, ...], tuple[Any, ...]], None] | None = None,
) -> dict[str, Any]:
    """Runs all steps losslessly and returns `engine.stats()`.

    Args:
      engine: on a virtual clock; warm it up first if the run should begin warm.
      steps: in order.
      costs: what attention, experts and predictor take.
      on_round: sees (layer, experts, buffers) of every round.
    """
    for step in steps:
        replay_step(engine, step, costs, on_round)
    return engine.stats()


def replay_step(
    engine: ExpertCacheEngine,
    step: ReplayStep,
    costs: ComputeCosts,
    on_round: Callable[[int, tuple[int, ...], tuple[Any, ...]], None] | None = None,
    on_layer: Callable[[int, int], None] | None = None,
    at_once: bool = False,
) -> None:
    """Runs one step; see `replay`.

    Args:
      on_layer: sees (layer, how many experts it asked for) after every layer.
      at_once: a layer's experts are computed together, once all have come.
    """
    clock = engine.clock
    if step.begins:
        engine.begin_batch()
    if step.horizon is not None and engine.forecasts:
        clock.spend(costs.predictor_seconds(step.tokens), "predictor")
    engine.begin_step(step.horizon)
    for layer, rows_E in enumerate(step.rows):
        clock.spend(costs.attend_seconds(step.tokens), "compute")
        watched = step.hidden_probs is not None and layer + 1 < len(step.rows) and engine.watches_hidden
        if watched:
            clock.spend(costs.route_seconds(step.tokens), "compute")
        experts = np.flatnonzero(rows_E).astype(np.int32)
        for group, buffers in engine.rounds(layer, experts, rows_E):
            if on_round is not None:
                on_round(layer, group, buffers)
            if watched:
                _observe_next(engine, step, layer)
                watched = False
            if not at_once:
                clock.spend(costs.experts_seconds([int(rows_E[e]) for e in group]), "compute")
        if watched:
            _observe_next(engine, step, layer)
        if at_once:
            clock.spend(costs.experts_seconds(rows_E[experts].tolist()), "compute")
        if on_layer is not None:
            on_layer(layer, len(experts))
    engine.end_step()


def _observe_next(engine: ExpertCacheEngine, step: ReplayStep, layer: int) -> None:
    """Once the running layer has asked: what the next one's router says of its hidden state."""
    assert step.hidden_probs is not None
    top_k = max(1, int(step.rows[layer].sum()) // max(step.tokens, 1))
    engine.observe_hidden(layer + 1, step.hidden_probs[layer + 1], top_k)
