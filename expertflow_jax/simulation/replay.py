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
    """

    tokens: int
    rows: np.ndarray
    horizon: np.ndarray | None = None

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
    clock = engine.clock
    for step in steps:
        if step.horizon is not None and engine.forecasts:
            clock.spend(costs.predictor_seconds(step.tokens), "predictor")
        engine.begin_step(step.horizon)
        for layer, rows in enumerate(step.rows):
            clock.spend(costs.attend_seconds(step.tokens), "compute")
            for experts, buffers in engine.rounds(layer, np.flatnonzero(rows).astype(np.int32)):
                if on_round is not None:
                    on_round(layer, experts, buffers)
                clock.spend(costs.experts_seconds([int(rows[e]) for e in experts]), "compute")
        engine.end_step()
    return engine.stats()
