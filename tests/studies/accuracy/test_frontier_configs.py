"""The frontier's configs name cells that can be compared, and a small run of the first has its section."""

import dataclasses

import pytest

from configs import frontier, frontier_equivalence, frontier_of_model, frontier_tuning
from expertflow_jax.offload.misses import MISS_POLICIES
from expertflow_jax.studies.accuracy.grid import cells
from expertflow_jax.studies.accuracy.preparation import check
from expertflow_jax.studies.accuracy.runner import run

CONFIGS = (
    frontier.get_config(),
    frontier_equivalence.get_config(),
    frontier_of_model.get_config("runs/some/export"),
    frontier_tuning.get_config(),
)


@pytest.mark.parametrize("config", CONFIGS)
def test_every_way_to_lose_has_waiting_beside_it(config):
    named = set(check(config))
    for cell in named:
        waiting = dataclasses.replace(cell, miss_policy="wait", expert_dtype=None)
        assert waiting in named, cell.label()


def test_the_frontier_has_all_miss_policies_and_both_kinds_of_size():
    named = cells(frontier.get_config())
    careful = set(MISS_POLICIES) - {"capacity"}  # which has nothing to do with what is absent
    assert {cell.miss_policy.partition("(")[0] for cell in named} == careful
    assert {cell.memory_budget for cell in named} == {None, *frontier.BUDGETS}


@pytest.mark.slow
def test_a_small_frontier_is_reported_by_fraction_and_by_budget(tmp_path):
    config = frontier.get_config()
    config.num_examples = 8
    config.digit_scenes.update({"train": 32, "val": 32})
    config.bootstrap_samples = 50
    del config.grids.forecasting, config.grids.naive
    rows = run(config, tmp_path, "a test")
    assert {row.size for row in rows} == {"1", "0.25", "0.5", *frontier.BUDGETS}
    report = (tmp_path / "report.md").read_text()
    for family in ("defer", "buddy", "low_precision", "drop_weak", "int8"):
        (sentence,) = [line for line in report.splitlines() if line.startswith(f"- `{family}`") and "at 0.25 " in line]
        assert all(f"at {size} " in sentence for size in ("0.25", "0.5", *frontier.BUDGETS))
    at_budget = {row.expert_dtype: row.slots for row in rows if row.size == "10MiB" and row.task == "vqa_v2"}
    assert at_budget["int8"] > at_budget["float32"]
