"""Made-up routing with the traits of real routing, and forecasts of a stated skill: for tests and for trying
policies.

Experts differ in popularity, sequences in topic, tokens in kind; topic and kind shift the experts of every
layer, so that layers correlate and successive tokens of a sequence route alike. A forecast is a noisy
observation of what really comes, turned into probabilities by Bayes' rule: it is calibrated whatever its
skill.
Axes: N steps, H steps of the horizon, B sequences, T tokens, L MoE layers, E experts, K top-k.
"""

import dataclasses
from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Bool, Float

from expertflow_jax.simulation.replay import ReplayStep

KINDS = 16  # of tokens


def synthetic_steps(
    seed: int,
    *,
    num_layers: int,
    num_experts: int,
    top_k: int,
    batches: int,
    batch_size: int = 8,
    prompt_tokens: int = 16,
    decode_steps: int = 4,
    topics: int = 6,
    skew: float = 1.0,
    structure: float = 1.5,
) -> list[ReplayStep]:
    """Steps of `batches` batches, each one prefill (none if `prompt_tokens` is 0) and `decode_steps`
    decodings.

    Args:
      seed: of everything.
      num_layers, num_experts, top_k: L, E, K.
      batches, batch_size, prompt_tokens, decode_steps: sizes; B sequences of T tokens.
      topics: how many topics sequences have.
      skew: spread of the experts' log popularity.
      structure: spread of what topic, and of what the token's kind, add to it; noise has spread 1.28.
    """
    random = np.random.default_rng(seed)
    shape = (num_layers, num_experts)
    popularity = skew * random.standard_normal(shape)
    of_topic = structure * random.standard_normal((topics, *shape))
    of_kind = structure * random.standard_normal((KINDS, *shape))
    steps = []
    for _ in range(batches):
        topic = random.integers(topics, size=batch_size)
        for place, length in enumerate([prompt_tokens] * (prompt_tokens > 0) + [1] * decode_steps):
            kind = random.integers(KINDS, size=(batch_size, length))
            logits = popularity + of_topic[topic][:, None] + of_kind[kind]
            logits = logits + random.gumbel(size=logits.shape)
            chosen = np.argpartition(-logits, top_k - 1, axis=-1)[..., :top_k]
            rows = np.zeros(shape, np.int64)
            layers = np.broadcast_to(np.arange(num_layers)[:, None], chosen.shape)
            np.add.at(rows, (layers, chosen), 1)
            steps.append(ReplayStep(batch_size * length, rows, begins=place == 0))
    return steps


def noisy_horizons(
    steps: Sequence[ReplayStep], seed: int, skill: float, look_ahead: int = 2, fading: float = 0.5
) -> list[ReplayStep]:
    """The same steps with calibrated forecasts of limited skill.

    Whether an expert is used is seen through noise: a normal variable of spread 1 around `skill` or 0.
    Combined with how often steps of this size use the expert, that gives the probability. A skill of 0 knows
    frequencies alone, 2 to 3 resembles a trained predictor, infinity is the truth.

    Args:
      steps: in order.
      seed: of the noise.
      skill: of the forecast of the step at hand.
      look_ahead: H; fewer at the end.
      fading: each further step is seen with this fraction of the skill.
    """
    random = np.random.default_rng(seed)
    sizes = np.array([step.tokens for step in steps])
    needed = np.stack([step.needed for step in steps])
    frequency = np.empty(needed.shape)
    for size in np.unique(sizes):
        frequency[sizes == size] = needed[sizes == size].mean(axis=0)
    frequency = np.clip(frequency, 1e-3, 1 - 1e-3)
    forecasts = []
    for i, step in enumerate(steps):
        ahead = slice(i, i + look_ahead)
        if np.isinf(skill):
            horizon = needed[ahead].astype(np.float32)
        else:
            skills = skill * fading ** np.arange(len(needed[ahead]))[:, None, None]
            seen = skills * needed[ahead] + random.standard_normal(needed[ahead].shape)
            odds = np.log(frequency[ahead] / (1 - frequency[ahead])) + skills * (seen - skills / 2)
            horizon = (1 / (1 + np.exp(-odds))).astype(np.float32)
        forecasts.append(dataclasses.replace(step, horizon=horizon))
    return forecasts


def recall(steps: Sequence[ReplayStep]) -> float:
    """`forecast_recall` of the steps' own forecasts."""
    horizons = [step.horizon for step in steps]
    if any(horizon is None for horizon in horizons):
        raise ValueError("these steps carry no forecast")
    return forecast_recall([step.needed for step in steps], [horizon[0] for horizon in horizons if horizon is not None])


def forecast_recall(needed: Iterable[Bool[np.ndarray, "L E"]], forecasts: Iterable[Float[np.ndarray, "L E"]]) -> float:
    """Of the experts that layer-steps used, the fraction among equally many of the highest forecast; steps in order."""
    hits = used = 0
    for needed_LE, forecast_LE in zip(needed, forecasts, strict=True):
        for layer, forecast in zip(needed_LE, forecast_LE, strict=True):
            count = int(layer.sum())
            hits += int(layer[np.argsort(-forecast, kind="stable")[:count]].sum())
            used += count
    return hits / used if used else 1.0
