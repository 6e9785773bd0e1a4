"""Replays recorded routing through the engine on a virtual clock, without a model: what a policy would have
done.

The batches of a block go through the layers together, a super-step at a time (FlexGen's block schedule, 2303.06865):
an expert travels once for all of them. A batch that runs by itself is a block of one.
Axes: H steps of the horizon, L MoE layers, E experts, M batches of a block.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from expertflow_jax.offload.engine import ExpertCacheEngine
from expertflow_jax.simulation.costs import ComputeCosts


@dataclasses.dataclass(frozen=True)
class ReplayStep:
    """One recorded step of a batch, or super-step of a block (see `together`).

    Attributes:
      tokens: how many tokens it processed.
      rows: int [L, E], rows (token, choice) of every expert; zero where it was not used.
      horizon: float32 [H, L, E] forecast in force, or None.
      begins: whether a batch of sequences, or a block, begins with it.
      hidden_probs: float32 [L, tokens, E], what each layer's router said of the hidden state of the MoE layer before it
        (the first layer's row is not read); None if that was not recorded.
      predicted: whether the predictor ran for the horizon, at its cost.
      members: of a block of several batches, the step of each: their sizes and rows are read.
    """

    tokens: int
    rows: np.ndarray
    horizon: np.ndarray | None = None
    begins: bool = False
    hidden_probs: np.ndarray | None = None
    predicted: bool = True
    members: tuple["ReplayStep", ...] = ()

    @property
    def needed(self) -> Bool[np.ndarray, "L E"]:
        """Experts that any of its tokens chose."""
        return self.rows > 0

    @property
    def batches(self) -> tuple["ReplayStep", ...]:
        """The step of each batch: M, or this one alone."""
        return self.members or (self,)


def together(
    steps: Sequence[ReplayStep], horizon: Float[np.ndarray, "H L E"] | None = None, *, predicted: bool = True
) -> ReplayStep:
    """The super-step in which the steps of M batches run together; of one batch, its step under this forecast.

    Args:
      horizon: forecast of the union; the steps' own are not read.
    """
    hidden = [step.hidden_probs for step in steps if step.hidden_probs is not None]
    return ReplayStep(
        sum(step.tokens for step in steps),
        np.sum([step.rows for step in steps], axis=0),
        horizon,
        any(step.begins for step in steps),
        np.concatenate(hidden, axis=1) if len(hidden) == len(steps) else None,
        predicted,
        tuple(steps) if len(steps) > 1 else (),
    )


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
    """Runs one step, or the super-step of a block: each layer's experts are asked for once, and each that arrives
    computes the rows of every batch, as so many kernel calls. See `replay`.

    Args:
      on_layer: sees (layer, how many experts it asked for) after every layer.
      at_once: a layer's experts are computed together, once all have come.
    """
    clock = engine.clock
    if step.begins:
        engine.begin_batch()
    if step.horizon is not None and step.predicted and engine.forecasts:
        clock.spend(costs.predictor_seconds(step.tokens), "predictor")
    engine.begin_step(step.horizon)
    for layer, rows_E in enumerate(step.rows):
        for batch in step.batches:
            clock.spend(costs.attend_seconds(batch.tokens), "compute")
        watched = step.hidden_probs is not None and layer + 1 < len(step.rows) and engine.watches_hidden
        if watched:
            for batch in step.batches:
                clock.spend(costs.route_seconds(batch.tokens), "compute")
        experts = np.flatnonzero(rows_E).astype(np.int32)
        rows_MxE = [batch.rows[layer].tolist() for batch in step.batches]
        for group, buffers in engine.rounds(layer, experts, rows_E):
            if on_round is not None:
                on_round(layer, group, buffers)
            if watched:
                _observe_next(engine, step, layer)
                watched = False
            if not at_once:
                _compute(engine, rows_MxE, group, costs)
        if watched:
            _observe_next(engine, step, layer)
        if at_once:
            _compute(engine, rows_MxE, experts.tolist(), costs)
        if on_layer is not None:
            on_layer(layer, len(experts))
    engine.end_step()


def _compute(
    engine: ExpertCacheEngine, rows_MxE: Sequence[Sequence[int]], experts: Sequence[int], costs: ComputeCosts
) -> None:
    """The experts of a round on the rows of every batch that chose one of them."""
    for rows_E in rows_MxE:
        rows = [rows_E[expert] for expert in experts if rows_E[expert]]
        if rows:
            engine.clock.spend(costs.experts_seconds(rows), "compute")


def _observe_next(engine: ExpertCacheEngine, step: ReplayStep, layer: int) -> None:
    """Once the running layer has asked: what the next one's router says of its hidden state."""
    assert step.hidden_probs is not None
    top_k = max(1, int(step.rows[layer].sum()) // max(step.tokens, 1))
    engine.observe_hidden(layer + 1, step.hidden_probs[layer + 1], top_k)
