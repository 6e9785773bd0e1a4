"""What the host asks of the device in each MoE layer of a decode step: counts, which no machine's speed moves.

On the virtual clock the thread that computes does the link's work too, so it is counted apart: `_overwrite`, `_commit`
and `device_put` of the experts that arrive.
"""

import functools
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))
from device_calls import device_calls
from small_model import served, small_config

from expertflow_jax.inference.session import InferenceSession
from expertflow_jax.models.device_form import IN_PLACE, INTERPRETED_POOL
from expertflow_jax.offload.clock import VirtualClock
from expertflow_jax.offload.engine import ExpertCacheEngine
from expertflow_jax.offload.misses import make_miss_policy
from expertflow_jax.processing.batching import Prompt, pad_prompts
from expertflow_jax.simulation.costs import ComputeCosts, Line

COSTS = ComputeCosts(Line(1e-4, 1e-6), Line(1e-5, 1e-7), 1e-6, Line(1e-5, 0), Line(1e-4, 1e-6), Line(1e-4, 1e-6))
EXPERTS, TOP_K, LAYERS, STEPS = 16, 4, 2, 4
CONFIG = small_config(num_experts=EXPERTS, num_experts_per_tok=TOP_K, num_hidden_layers=LAYERS)


@functools.cache
def stages_of(form):
    return served(CONFIG)[0].with_form(form)


def decode(form, batch_size, share):
    """What a few decode steps ask for, and how many experts were absent."""
    stages, store = stages_of(form), served(CONFIG)[1]
    slots = int(share * LAYERS * EXPERTS)
    rng = np.random.default_rng(0)
    with ExpertCacheEngine(store, slots, "on_demand", "emulated(0.001,5)", VirtualClock(), form=form) as engine:
        engine.warm_up()
        session = InferenceSession(stages, engine, make_miss_policy("wait"), COSTS)
        session.samples_memory = False
        batch = pad_prompts(CONFIG, [Prompt(np.arange(5, 9, dtype=np.int32))] * batch_size)
        sequences, active = session.start(batch, 40), np.ones(batch_size, bool)
        session.prefill(batch, sequences, *session.embed(batch), None)
        tokens = rng.integers(5, CONFIG.text.vocab_size, (2, STEPS, batch_size, 1)).astype(np.int32)
        before, counted = ([stages.embed(ids, None, None) for ids in part] for part in tokens)
        for x in before:
            session.decode(sequences, x, active, None)
        engine.reset_stats()
        with device_calls() as calls:
            for x in counted:
                session.decode(sequences, x, active, None)
        stats = engine.stats()
    return calls, stats["misses"] + stats["late"]


@pytest.mark.parametrize(
    ("form", "batch_size", "share"),
    [
        (IN_PLACE, 1, 1.0),
        (IN_PLACE, 1, 0.5),
        (INTERPRETED_POOL, 1, 0.5),
        pytest.param(IN_PLACE, 4, 1.0, marks=pytest.mark.slow),
        pytest.param(IN_PLACE, 4, 0.5, marks=pytest.mark.slow),
        pytest.param(INTERPRETED_POOL, 1, 1.0, marks=pytest.mark.slow),
    ],
)
def test_a_layer_asks_the_device_for_little(form, batch_size, share):
    calls, misses = decode(form, batch_size, share)
    assert (misses > 0) == (share < 1)
    layers = STEPS * LAYERS
    stages, moved = calls.by_stage, calls.by_stage["_overwrite"] + calls.by_stage["_commit"]
    groups = stages["run"] + stages["named"]
    assert moved == misses
    assert stages["attend"] == calls.reads == layers
    # Beside these, where tokens stand and the sum behind the last layer: once a step.
    assert calls.dispatches == layers + groups + moved + 2 * STEPS
    here = 1 if form.pooled else {1: 2, 4: 6}[batch_size]  # calls for the experts that are there
    assert groups <= here * layers + misses
    # A pool's kernel finds the rows on the device; else each group has a table of them.
    assert calls.uploads <= 3 * STEPS + (calls.puts if form.pooled else groups)
    assert calls.puts <= (2 * misses if form.pooled else 0)
