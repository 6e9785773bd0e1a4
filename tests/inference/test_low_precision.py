"""Misses served from quantised copies: bytes on the link are the copies', thresholds of one are `wait`."""

from pathlib import Path

import numpy as np
import pytest

from expertflow_jax import OffloadedModel
from expertflow_jax.errors import InputError
from expertflow_jax.inference.forecasting import NoForecast
from expertflow_jax.inference.generation import generate_batch
from expertflow_jax.inference.loading import load_model, with_expert_dtype
from expertflow_jax.inference.served import serve
from expertflow_jax.offload.clock import VirtualClock
from expertflow_jax.offload.variant import Variant
from expertflow_jax.processing.batching import Prompt
from expertflow_jax.simulation.costs import ComputeCosts, Line

BASE = str(Path(__file__).parents[1] / "goldens" / "models" / "base")
COSTS = ComputeCosts(Line(1e-4, 1e-6), Line(1e-5, 1e-7), 1e-6, Line(1e-5, 0), Line(1e-4, 1e-6), Line(1e-4, 1e-6))
PROMPTS = [Prompt(ids.astype(np.int32)) for ids in np.random.default_rng(0).integers(12, 40, (3, 7))]


@pytest.fixture(scope="module")
def model():
    return load_model(BASE, "float32")


def run(model, miss_policy, policy="on_demand", slots=8):
    with serve(
        model, Variant.of(policy), slots, "emulated(0.001,5)", VirtualClock(), miss_policy=miss_policy, costs=COSTS
    ) as session:
        answers = generate_batch(session, PROMPTS, NoForecast(), max_new_tokens=[4] * 3, stop_ids=(0,))
        logits = np.stack([answer.first_logits for answer in answers])
        return logits, [a.logits_digest for a in answers], session.engine.stats(), session.losses.rates()


def test_thresholds_of_one_are_byte_identical_to_waiting(model):
    for policy in ("on_demand", "cache_moe"):
        assert run(model, "low_precision(t1=1, t2=1)", policy)[1:] == run(model, "wait", policy)[1:]


def test_copies_travel_with_their_own_bytes_and_answers_stay_near(model):
    exact, _, waiting, _ = run(model, "wait")
    for bits, near in ((8, 0.02), (4, 0.35)):
        logits, _, stats, losses = run(model, f"low_precision(bits={bits}, t1=-1, t2=1)")
        copy = with_expert_dtype(model, f"int{bits}", None).store.expert_bytes
        assert stats["bytes_transferred"] == stats["urgent_transfers"] * copy
        assert 0 < stats["bytes_transferred"] < waiting["bytes_transferred"] / 2
        assert stats["stall_seconds"] < waiting["stall_seconds"] / 2
        assert 0 < np.abs(logits - exact).max() <= near * np.abs(exact).max()
        assert losses == {"dropped_rate": 0, "exchanged_rate": 0, "deferred_rate": 0, "discarded_mass": 0}
        assert stats["peak_slot_bytes"] <= stats["slots"] * model.store.expert_bytes


def test_whole_experts_take_the_place_of_copies_that_will_not_do(model):
    _, _, stats, _ = run(model, "low_precision(bits=8, t1=0, t2=1)", slots=20)
    copy = with_expert_dtype(model, "int8", None).store.expert_bytes
    sizes, totals = [[model.store.expert_bytes, copy], [1, 1]], [stats["bytes_transferred"], stats["urgent_transfers"]]
    whole, copies = np.linalg.solve(sizes, totals)
    assert whole == pytest.approx(round(whole), abs=1e-3)
    assert whole > 0
    assert copies > 0
    assert (
        run(model, "low_precision(bits=8, t1=0, t2=1)", slots=20)[1]
        == run(model, "low_precision(bits=8, t1=0, t2=1)", slots=20)[1]
    )


def test_weak_experts_are_skipped_beyond_the_second_threshold(model):
    *_, losses = run(model, "low_precision(t1=-1, t2=0)")
    assert losses["dropped_rate"] > 0


def test_the_programming_interface_runs_copies_too():
    ids = np.stack([prompt.input_ids for prompt in PROMPTS])
    options = {"policy": "on_demand", "cache_fraction": 0.25, "max_batch_size": 3, "max_tokens": 16}
    with OffloadedModel.from_pretrained(BASE, miss_policy="low_precision(bits=8, t1=-1, t2=1)", **options) as model:
        copied = model.logits(ids)
        assert model.stats()["lossless"] is False
    with OffloadedModel.from_pretrained(BASE, **options) as model:
        exact = model.logits(ids)
    assert 0 < np.abs(copied - exact).max() <= 0.05 * np.abs(exact).max()


def test_copies_of_quantised_experts_are_refused():
    with pytest.raises(InputError, match="load the model without expert_dtype") as caught:
        OffloadedModel.from_pretrained(BASE, expert_dtype="int8", miss_policy="low_precision")
    assert "\n" not in str(caught.value)
