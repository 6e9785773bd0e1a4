"""Small traces and engines for tests that read the event log. Axes: L MoE layers, E experts, N tokens of a step."""

import numpy as np

from expertflow_jax.offload.engine import ExpertCacheEngine
from expertflow_jax.offload.store import ExpertSizes
from expertflow_jax.simulation.costs import ComputeCosts, Line
from expertflow_jax.simulation.event_log import record
from expertflow_jax.simulation.replay import ReplayStep
from expertflow_jax.simulation.synthetic import synthetic_steps

NOTHING = Line(0.0, 0.0)
LAYERS, EXPERTS = 5, 8


def costs(attend=1.0, expert=0.0):
    """Seconds of attention per layer and of each expert."""
    return ComputeCosts(Line(attend, 0.0), NOTHING, expert, NOTHING, NOTHING, NOTHING, route=NOTHING)


def engine_of(policy, layers, experts, slots, seconds=1.0):
    """An engine with a warm cache whose link moves an expert in so many seconds."""
    engine = ExpertCacheEngine(ExpertSizes(layers, experts, 64), slots, policy, f"emulated({64e-9 / seconds!r},0)")
    engine.warm_up()
    return engine


def steps_of(layers, experts, asks, hidden=None):
    """One step per list of asks, each the experts of every layer; `hidden`: guesses of every layer likewise."""
    steps = []
    for step, chosen in enumerate(asks):
        rows_LE = np.zeros((layers, experts), int)
        probs_LNE = None if hidden is None else np.zeros((layers, 1, experts), np.float32)
        for layer, ids in enumerate(chosen):
            rows_LE[layer, list(ids)] = 1
            if probs_LNE is not None:
                guesses = hidden[step][layer]
                probs_LNE[layer, 0, list(guesses)] = 0.5 ** np.arange(1, len(guesses) + 1)
        steps.append(ReplayStep(1, rows_LE, None, step == 0, probs_LNE))
    return steps


def one_layer(policy, experts, slots, asks):
    """The log of a model of one layer that is asked for one expert after another."""
    return record(engine_of(policy, 1, experts, slots), steps_of(1, experts, [[(ask,)] for ask in asks]), costs())


def decoding(seed=1, steps=30):
    """Made-up decode steps of one sequence: two experts of each layer."""
    return synthetic_steps(
        seed,
        num_layers=LAYERS,
        num_experts=EXPERTS,
        top_k=2,
        batches=1,
        batch_size=1,
        prompt_tokens=0,
        decode_steps=steps,
    )
