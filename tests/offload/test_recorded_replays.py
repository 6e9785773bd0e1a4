"""Replays of made-up routing, equal in every count and second to what the engine did when they were recorded.

`python tests/offload/test_recorded_replays.py` records them anew; only a change that means to change decisions may.
"""

import itertools
import json
import zlib
from pathlib import Path

import pytest

from expertflow_jax.offload.engine import ExpertCacheEngine
from expertflow_jax.offload.store import ExpertSizes
from expertflow_jax.simulation.costs import ComputeCosts, Line
from expertflow_jax.simulation.replay import replay, true_horizons
from expertflow_jax.simulation.synthetic import noisy_horizons, synthetic_steps

RECORD = Path(__file__).parent.parent / "goldens" / "engine_replays.json"
NOTHING = Line(0.0, 0.0)
COSTS = ComputeCosts(Line(1e-4, 1e-6), Line(5e-5, 2e-6), 1e-5, NOTHING, NOTHING, Line(1e-4, 1e-6))
SHAPES = {"6x64": (6, 64, 2, 8), "48x128": (48, 128, 8, 1)}  # layers, experts, top-k, sequences
FORECASTS = {
    "on_demand": ("none",),
    "cache_moe": ("none",),
    "expertflow": ("none", "noisy", "truth"),
    "oracle": ("truth",),
}
CASES = [
    (shape, policy, forecast, fraction)
    for shape, policy, fraction in itertools.product(SHAPES, FORECASTS, (0.125, 0.5))
    for forecast in FORECASTS[policy]
]


def outcome(shape, policy, forecast, fraction):
    """All stats, and a checksum of which experts were served in which rounds."""
    layers, experts, top_k, batch = SHAPES[shape]
    prompt = 6 if batch > 1 else 0
    sizes = {"num_layers": layers, "num_experts": experts, "top_k": top_k, "batch_size": batch}
    steps = synthetic_steps(7, batches=2, prompt_tokens=prompt, decode_steps=5, **sizes)
    if forecast != "none":
        steps = true_horizons(steps) if forecast == "truth" else noisy_horizons(steps, 8, skill=2.2)
    engine = ExpertCacheEngine(
        ExpertSizes(layers, experts, 10**5), int(fraction * layers * experts), policy, "emulated(1,5)"
    )
    engine.warm_up()
    served = []
    stats = replay(engine, steps, COSTS, lambda layer, group, _: served.append((layer, *group)))
    return {**stats, "served": zlib.crc32(json.dumps(served).encode())}


@pytest.mark.parametrize("case", CASES, ids=lambda case: " ".join(map(str, case)))
def test_a_replay_is_what_it_was(case):
    recorded = json.loads(RECORD.read_text())
    assert outcome(*case) == recorded[" ".join(map(str, case))]


if __name__ == "__main__":
    found = {" ".join(map(str, case)): outcome(*case) for case in CASES}
    RECORD.write_text(json.dumps(found, indent=1) + "\n")
