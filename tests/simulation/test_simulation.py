"""Compute costs on file, replay of recorded routing, made-up traces."""

import dataclasses
import json

import numpy as np
import pytest

from expertflow_jax.errors import InputError
from expertflow_jax.offload.engine import ExpertCacheEngine
from expertflow_jax.offload.store import ExpertSizes
from expertflow_jax.simulation.costs import ComputeCosts, Line
from expertflow_jax.simulation.replay import ReplayStep, replay, together, true_horizons
from expertflow_jax.simulation.synthetic import noisy_horizons, synthetic_steps

COSTS = ComputeCosts(
    attend=Line(1.0, 0.5),
    experts=Line(0.25, 0.125),
    per_expert=0.5,
    head=Line(0.0, 2.0),
    vision=Line(3.0, 0.0),
    predictor=Line(8.0, 1.0),
    recorded_on="a test",
)


def test_costs_are_what_they_say():
    assert COSTS.attend_seconds(4) == 3.0
    assert COSTS.experts_seconds([1, 3]) == 0.25 + 4 * 0.125 + 2 * 0.5
    assert COSTS.head_seconds(2) == 4.0
    assert COSTS.vision_seconds(100) == 3.0
    assert COSTS.predictor_seconds(2) == 10.0


def test_costs_survive_a_file(tmp_path):
    path = tmp_path / "costs.json"
    path.write_text(COSTS.to_json())
    assert ComputeCosts.load(path) == COSTS
    assert ComputeCosts.from_json(COSTS.to_json()) == COSTS


def spoilt(**changes):
    values = json.loads(COSTS.to_json())
    for key, value in changes.items():
        if value is None:
            del values[key]
        else:
            values[key] = value
    return json.dumps(values)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        COSTS.to_json()[:-20],
        spoilt(attend=None),
        spoilt(extra=1),
        spoilt(attend={"base": 1}),
        spoilt(attend={"base": 1, "per_unit": 0, "more": 2}),
        spoilt(attend=3),
        spoilt(attend={"base": -1, "per_unit": 0}),
        spoilt(head={"base": "x", "per_unit": 0}),
        spoilt(head={"base": float("nan"), "per_unit": 0}),
        spoilt(per_expert=-1),
        spoilt(per_expert=float("inf")),
    ],
)
def test_malformed_costs_are_refused_in_one_line(tmp_path, text):
    path = tmp_path / "costs.json"
    path.write_text(text)
    with pytest.raises(InputError, match=r"costs\.json: .*record the costs again") as error:
        ComputeCosts.load(path)
    assert "\n" not in str(error.value)


def test_missing_costs_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"none\.json: No such file"):
        ComputeCosts.load(tmp_path / "none.json")


def test_a_line_is_found_and_never_negative():
    units = np.arange(1, 20)
    line = Line.fit(units, 3 + 0.25 * units)
    assert line.base == pytest.approx(3)
    assert line.per_unit == pytest.approx(0.25)
    falling = Line.fit(units, 10 - 0.1 * units)
    assert falling.base > 0
    assert falling.per_unit == 0


def steps_of(*rows, tokens=2):
    return [ReplayStep(tokens, np.array(r)) for r in rows]


def test_replay_spends_what_stages_cost():
    engine = ExpertCacheEngine(ExpertSizes(1, 2, 64), 2, "resident")
    engine.warm_up()
    steps = steps_of([[2, 0]], [[1, 3]])
    seen = []
    stats = replay(engine, steps, COSTS, lambda layer, experts, buffers: seen.append((layer, experts)))
    assert seen == [(0, (0,)), (0, (0, 1))]
    assert stats["wall_seconds"] == stats["compute_seconds"] == 2 * 2.0 + (0.25 + 0.25 + 0.5) + (0.25 + 0.5 + 1.0)
    assert stats["hits"] == 3


def test_only_policies_that_use_a_forecast_pay_for_it():
    for policy, paid in [("on_demand", 0.0), ("expertflow", 2 * 10.0)]:
        engine = ExpertCacheEngine(ExpertSizes(1, 2, 64), 1, policy)
        stats = replay(engine, true_horizons(steps_of([[2, 0]], [[1, 3]])), COSTS)
        assert stats["predictor_seconds"] == paid


def batches_of(seed, batches=4):
    """Made-up steps of each batch: a prefill and two decode steps."""
    steps = synthetic_steps(
        seed, num_layers=3, num_experts=8, top_k=2, batches=batches, batch_size=2, prompt_tokens=4, decode_steps=2
    )
    return [steps[i : i + 3] for i in range(0, len(steps), 3)]


def replayed(policy, steps, slots=12):
    engine = ExpertCacheEngine(ExpertSizes(3, 8, 10**6), slots, policy, "emulated(0.5,10)")
    engine.warm_up()
    return replay(engine, steps, COSTS)


@pytest.mark.parametrize("policy", ["on_demand", "cache_moe", "expertflow"])
def test_a_block_of_one_batch_is_the_batch(policy):
    steps = noisy_horizons([step for batch in batches_of(3) for step in batch], 1, skill=2.0)
    blocks = [together([step], step.horizon) for step in steps]
    assert replayed(policy, blocks) == replayed(policy, steps)


def test_a_block_computes_what_its_batches_compute_and_asks_once():
    batches = batches_of(5)
    alone = [step for batch in batches for step in batch]
    blocks = [together(members) for members in zip(*batches, strict=True)]
    resident, resident_blocks = replayed("resident", alone, 24), replayed("resident", blocks, 24)
    assert resident_blocks["compute_seconds"] == pytest.approx(resident["compute_seconds"])
    asked = sum(int((sum(step.rows for step in members) > 0).sum()) for members in zip(*batches, strict=True))
    stats = replayed("cache_moe", blocks)
    assert stats["hits"] + stats["late"] + stats["misses"] == asked
    assert stats["bytes_transferred"] < replayed("cache_moe", alone)["bytes_transferred"]
    assert blocks[0].begins
    assert not blocks[1].begins


def test_a_forecast_that_nobody_had_to_predict_costs_nothing():
    step = batches_of(1)[0][0]
    horizon = np.ones((1, 3, 8), np.float32)
    assert replayed("expertflow", [together([step], horizon)])["predictor_seconds"] == 8.0 + step.tokens
    assert replayed("expertflow", [together([step], horizon, predicted=False)])["predictor_seconds"] == 0


def test_true_horizons_are_what_follows():
    steps = true_horizons(steps_of([[1, 0]], [[0, 2]], [[3, 3]]), look_ahead=2)
    assert [step.horizon.tolist() for step in steps] == [
        [[[1, 0]], [[0, 1]]],
        [[[0, 1]], [[1, 1]]],
        [[[1, 1]]],
    ]


def test_made_up_routing_is_reproducible_and_of_the_stated_size():
    sizes = {"num_layers": 3, "num_experts": 8, "top_k": 2, "batches": 2, "batch_size": 4}
    steps = synthetic_steps(1, prompt_tokens=5, decode_steps=2, **sizes)
    again = synthetic_steps(1, prompt_tokens=5, decode_steps=2, **sizes)
    other = synthetic_steps(2, prompt_tokens=5, decode_steps=2, **sizes)
    assert [step.tokens for step in steps] == [20, 4, 4, 20, 4, 4]
    assert all((step.rows.sum(axis=1) == step.tokens * 2).all() for step in steps)
    assert all((a.rows == b.rows).all() for a, b in zip(steps, again, strict=True))
    assert any((a.rows != b.rows).any() for a, b in zip(steps, other, strict=True))


def test_an_infinitely_skilled_forecast_is_the_truth():
    steps = synthetic_steps(1, num_layers=2, num_experts=8, top_k=2, batches=2)
    for forecast, truth in zip(noisy_horizons(steps, 0, np.inf, 3), true_horizons(steps, 3), strict=True):
        assert dataclasses.replace(forecast, horizon=None) == dataclasses.replace(truth, horizon=None)
        np.testing.assert_array_equal(forecast.horizon, truth.horizon)
