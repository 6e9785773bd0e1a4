"""What holding an expert is worth by an uncertain forecast: the formulas of `expertflow`, as pure functions.

    value = sum over steps h of P(first used in step h) / (layer-steps until then)
            + P(not used within the horizon) / (layer-steps that a running frequency of the expert suggests)

the hits per layer-step that a slot may expect from holding the expert until its next use. With a certain forecast this
order is Belady's. On made-up traces with forecasts of recall 0.6 to 0.95 this hit density led over exponential
discounting and over expected distance, in hits and in time.
Axes: H steps of the horizon, L MoE layers, E experts.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float


def first_uses(uses: Float[np.ndarray, "H L E"]) -> tuple[Float[np.ndarray, "H L E"], Float[np.ndarray, "L E"]]:
    """From P(used in a step), steps taken as independent: P(first used in it), and P(never)."""
    first_HLE = np.empty_like(uses)
    never_LE = np.ones(uses.shape[1:], uses.dtype)
    for h, use_LE in enumerate(uses):
        first_HLE[h] = never_LE * use_LE
        never_LE -= first_HLE[h]
    return first_HLE, never_LE


def inverse_distances(steps: int, num_layers: int) -> Float[np.ndarray, "D"]:
    """1 / d for d layer-steps ahead, at [L + d]; 0 for what is not ahead, d from -L to 0."""
    distance_D = np.arange(-num_layers, (steps + 1) * num_layers + 1, dtype=np.float32)
    return np.where(distance_D > 0, 1 / np.maximum(distance_D, 1), 0)


def values(
    first: Float[np.ndarray, "H *layers E"] | Sequence[Float[np.ndarray, "*layers E"]],
    never: Float[np.ndarray, "*layers E"],
    frequency: Float[np.ndarray, "*layers E"],
    ahead: "int | np.ndarray",
    inverse: Float[np.ndarray, "D"],
    num_layers: int,
) -> Float[np.ndarray, "*layers E"]:
    """The value of every expert of one layer, [E], or of all, [L, E].

    Args:
      first, never: as `first_uses` gives them, `first` an array or a list of H; of a layer that has run in this step,
        from the next step on.
      frequency: float32, how often the expert is used per step.
      ahead: how many layers the layer is ahead of the one that asked last, negative behind it: a number, or int [L, 1].
      inverse: of `inverse_distances`.
    """
    # of an expert used with frequency q per step, the next use is L (1 - q) / q layer-steps later on average
    wait = frequency * np.float32((len(first) - 1) * num_layers + ahead)
    wait += num_layers
    value = never * frequency
    value /= wait
    for h in range(1 if isinstance(ahead, int) and ahead <= 0 else 0, len(first)):
        value += np.multiply(first[h], inverse[(h + 1) * num_layers + ahead], out=wait)
    return value


def saved(first: Float[np.ndarray, "H L E"], layer: int, expert: int, asked: int, hidden: float) -> float:
    """What a prefetch saves: P(used when its layer asks next) x what compute hides of the transfer until then.

    Args:
      asked: the layer that asked last.
      hidden: how much of a transfer one layer-step hides.
    """
    _, num_layers, _ = first.shape
    step = 0 if layer > asked else 1
    if step >= len(first):
        return 0.0
    return float(first[step, layer, expert] * min(1.0, (step * num_layers + layer - asked) * hidden))


def lost(first: Float[np.ndarray, "H L E"], layer: int, expert: int, asked: int) -> float:
    """What an eviction loses: P(used within the horizon), for the expert would have to travel again."""
    chance = np.float32(0)
    for first_LE in first[0 if layer > asked else 1 :]:
        chance += first_LE[layer, expert]
    return float(chance)
