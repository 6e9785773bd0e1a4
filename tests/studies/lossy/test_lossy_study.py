"""Lossy policies replayed on a full-size shape: what nothing loses equals waiting, and rows carry no accuracy."""

import dataclasses
import json

import numpy as np
import pytest

from configs import frontier_at_scale
from eval import simulate
from expertflow_jax import cli
from expertflow_jax.errors import InputError
from expertflow_jax.harness.fields import keys_of
from expertflow_jax.offload.misses import make_miss_policy
from expertflow_jax.offload.store import ExpertSizes
from expertflow_jax.offload.variant import Variant, new_engine
from expertflow_jax.simulation.costs import ComputeCosts, Line
from expertflow_jax.simulation.replay import ReplayStep, replay
from expertflow_jax.studies.lossy.replay import RoutedStep
from expertflow_jax.studies.lossy.replay import replay as replay_lossy
from expertflow_jax.studies.lossy.runner import cells_of

COSTS = ComputeCosts(Line(1e-4, 1e-6), Line(1e-5, 1e-7), 1e-6, Line(1e-5, 0), Line(1e-4, 1e-6), Line(1e-4, 1e-6))
LAYERS, EXPERTS, TOP_K = 3, 12, 3


def made_steps(count=10):
    random = np.random.default_rng(1)
    steps = []
    for number in range(count):
        tokens = 10 if number % 3 == 0 else 4
        probs_LxNxE = random.dirichlet(np.full(EXPERTS, 0.4), (LAYERS, tokens)).astype(np.float32)
        ids_LxNxK = np.argsort(-probs_LxNxE, axis=-1)[..., :TOP_K].astype(np.int32)
        steps.append(RoutedStep(ids_LxNxK, probs_LxNxE, random.random(tokens) < 0.5, number % 3 == 0))
    return steps


def run(miss_policy, slots=15, variant="cache_moe"):
    policy = make_miss_policy(miss_policy)
    copies = ExpertSizes(LAYERS, EXPERTS, 250) if policy.copies else None
    sizes = ExpertSizes(LAYERS, EXPERTS, 1000)
    with new_engine(sizes, Variant.of(variant), slots, "emulated(0.001,5)", copies=copies) as engine:
        return replay_lossy(engine, made_steps(), policy, COSTS)


def test_waiting_is_the_lossless_replay():
    rows = [np.array([np.bincount(ids.ravel(), minlength=EXPERTS) for ids in s.expert_ids]) for s in made_steps()]
    plain = [ReplayStep(len(s.image), r, begins=s.prefill) for s, r in zip(made_steps(), rows, strict=True)]
    with new_engine(ExpertSizes(LAYERS, EXPERTS, 1000), Variant.of("cache_moe"), 15, "emulated(0.001,5)") as engine:
        assert run("wait")[0] == replay(engine, plain, COSTS)


@pytest.mark.parametrize(
    "nothing",
    ["drop_weak(below=0)", "drop_light(mass=0)", "cache_prior(strength=0)", "buddy(flat=1.1)", "defer(experts=0)"],
)
def test_what_loses_nothing_costs_what_waiting_costs(nothing):
    assert run(nothing)[0] == run("wait")[0]


def test_losses_save_time_or_bytes():
    waiting = run("wait")[0]
    dropped, rates = run("drop_weak(below=1, phase='both')")
    assert 0 < rates["discarded_mass"] < 0.5
    assert dropped["wall_seconds"] < waiting["wall_seconds"]
    copied = run("low_precision(bits=4, t1=-1, t2=1)")[0]
    assert copied["bytes_transferred"] * 3 < waiting["bytes_transferred"]
    deferred, rates = run("defer(experts=2)")
    assert rates["deferred_rate"] > 0
    assert deferred["stall_seconds"] < waiting["stall_seconds"]


@pytest.mark.slow
def test_the_command_writes_rows_without_accuracy(tmp_path):
    words = ["--config=configs/frontier_at_scale.py", f"--workdir={tmp_path / 'run'}", "--config.sequences=8"]
    words += ["--config.grids.all.models=('mixtral_8x7b',)", "--config.grids.all.cache_fractions=(0.5,)"]
    words += ["--config.grids.all.miss_policies=('wait','low_precision(bits=8, t1=-1, t2=1)','defer')"]
    assert cli.run_command(simulate.main, description="test", argv=words) == 0
    rows = [json.loads(line) for line in (tmp_path / "run" / "results.jsonl").read_text().splitlines()]
    assert [set(row) for row in rows] == [set(keys_of("lossy"))] * 3
    assert not any("accuracy" in key for key in rows[0])
    assert "Accuracy is not simulated" in (tmp_path / "run" / "report.md").read_text()
    waiting, copies, _ = (row["bytes_transferred"] for row in rows)
    assert 0.5 < copies / waiting < 0.53


def test_policies_that_forecast_are_refused():
    config = frontier_at_scale.get_config()
    assert len({dataclasses.astuple(cell) for cell in cells_of(config)}) == 2 * 2 * 14
    config.grids.all.variants = ("expertflow",)
    with pytest.raises(InputError, match="forecasts, which is not replayed here"):
        cells_of(config)
