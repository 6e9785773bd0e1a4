"""The forecast in force: which experts it calls for, so that a misprediction can be told from a lack of time or room.

Axes: H steps of the horizon, L MoE layers, E experts, N tokens. A key is layer * E + expert.
"""

import numpy as np
from jaxtyping import Float, Int

from expertflow_jax.errors import InputError

CALLED_FOR = 0.5  # forecast probability from which an expert counts as foreseen
# Forecasts are rounded to multiples of 1 / GRID. The last bits of a predictor's probabilities differ between
# instruction sets, and thresholds are compared in float32: without a grid decisions would depend on the machine.
GRID = 1024


class Foresight:
    """What the running step's forecast has called for; nothing without a forecast.

    Attributes:
      mispredicted: keys of the running layer-step that were missing and not called for.
    """

    def __init__(self, num_layers: int, num_experts: int):
        self._shape = (num_layers, num_experts)
        self.begin_step(None)

    def checked(self, horizon: np.ndarray) -> Float[np.ndarray, "H L E"]:
        """The horizon on the grid.

        Raises:
          InputError: the horizon does not fit the model.
        """
        horizon = np.asarray(horizon)
        if horizon.ndim != 3 or horizon.shape[1:] != self._shape or len(horizon) == 0:
            raise InputError(
                f"horizon {horizon.shape}: expected [H, {self._shape[0]}, {self._shape[1]}] with H >= 1; "
                "is the forecast another model's?"
            )
        return on_grid(horizon)

    def begin_step(self, horizon: Float[np.ndarray, "H L E"] | None) -> None:
        """A step begins under this forecast; None: there is none."""
        self.mispredicted: list[int] = []
        self._called_for: np.ndarray | None = None  # bool [L * E]
        if horizon is not None:
            self.update(horizon)

    def update(self, horizon: Float[np.ndarray, "H L E"]) -> None:
        """Another forecast is in force from now on."""
        self._called_for = (horizon[0] >= CALLED_FOR).reshape(-1)

    def hidden(self, layer: int, router_probs: Float[np.ndarray, "N E"], top_k: int) -> None:
        """A layer's experts are called for that are among the `top_k` of any token."""
        num_layers, num_experts = self._shape
        if self._called_for is None:
            self._called_for = np.zeros(num_layers * num_experts, bool)
        row_E = self._called_for[layer * num_experts : (layer + 1) * num_experts]
        row_E[:] = False
        row_E[np.argpartition(-router_probs, min(top_k, num_experts) - 1, axis=1)[:, :top_k]] = True

    def asked(self, missing: Int[np.ndarray, "n"]) -> int:
        """A layer asks and these keys are missing: how many of them no forecast called for."""
        if self._called_for is None or not len(missing):
            return 0
        self.mispredicted = missing[~self._called_for[missing]].tolist()
        return len(self.mispredicted)


def on_grid(chances: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    """The nearest multiples of 1 / GRID, halves to the even one: float32, exact."""
    scaled = np.asarray(chances, np.float32) * np.float32(GRID)
    return np.rint(scaled, out=scaled) / np.float32(GRID)
