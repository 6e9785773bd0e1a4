"""The memory budget: amounts as text, slots as the floor of what remains, refusals that say what would do."""

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from expertflow_jax.errors import InputError
from expertflow_jax.offload.budget import format_bytes, parse_bytes, plan_memory

PARTS = {"dense": 1000, "kv": 200, "workspace": 30, "predictor": 4}
MODEL = {"expert_bytes": 50, "num_layers": 3, "num_experts": 8}


@pytest.mark.parametrize(
    ("amount", "nbytes"),
    [
        ("8GiB", 8 * 2**30),
        ("512MiB", 512 * 2**20),
        ("1.5GB", 1_500_000_000),
        (" 2 kib ", 2048),
        ("0.1kB", 100),
        ("77", 77),
        ("77B", 77),
        (123, 123),
        (np.int64(5), 5),
    ],
)
def test_amounts_are_read(amount, nbytes):
    assert parse_bytes(amount) == nbytes


@pytest.mark.parametrize("amount", ["", "GiB", "8 gallons", "-1GiB", "1e9", "nan", "8GiBs", -1, 1.5, None, True, b"8"])
def test_other_amounts_are_refused_with_an_example(amount):
    with pytest.raises(InputError, match=r"8GiB") as error:
        parse_bytes(amount)
    assert repr(amount) in str(error.value)


@given(st.integers(0, 2**50))
def test_a_formatted_amount_reads_back_as_no_less_and_within_a_percent(nbytes):
    back = parse_bytes(format_bytes(nbytes))
    assert nbytes <= back <= nbytes * 1.01


@settings(max_examples=50)
@given(st.integers(1284, 5000))
def test_slots_are_the_floor_of_what_the_budget_leaves(budget):
    plan = plan_memory(budget, None, **PARTS, **MODEL)
    assert plan.total_bytes <= budget
    assert plan.slots == 24 or plan.total_bytes + plan.expert_bytes > budget
    assert 1 <= plan.slots <= 24
    parts = dict(plan.describe())
    assert parts.pop("total") == plan.total_bytes == sum(parts.values())


@settings(max_examples=50)
@given(
    st.lists(st.integers(0, 10**10), min_size=4, max_size=4),
    st.integers(1, 10**8),
    st.integers(0, 10**12),
)
def test_the_minimum_that_a_refusal_names_is_the_least_that_works(parts, expert_bytes, budget):
    sizes = dict(zip(PARTS, parts, strict=True), expert_bytes=expert_bytes, num_layers=2, num_experts=4)
    try:
        assert plan_memory(budget, None, **sizes).slots >= 1
    except InputError as error:
        exact, readable = re.search(r"minimum of (\d+) bytes \((\S+)\)", str(error)).groups()
        assert plan_memory(int(exact), None, **sizes).slots == 1
        assert plan_memory(parse_bytes(readable), None, **sizes).slots >= 1
        with pytest.raises(InputError):
            plan_memory(int(exact) - 1, None, **sizes)


def test_a_refusal_names_every_part():
    with pytest.raises(
        InputError,
        match=r"memory_budget 1\.00KiB is below the minimum of 1284 bytes "
        r"\(1\.26KiB\): dense parameters 1000B, KV cache 200B, workspace 30B, "
        r"predictor 4B and one expert 50B; raise memory_budget",
    ):
        plan_memory(1024, None, **PARTS, **MODEL)


@pytest.mark.parametrize(("fraction", "slots"), [(1.0, 24), (0.5, 12), (0.49, 11), (0.125, 3), (0.001, 1), (None, 24)])
def test_a_fraction_is_rounded_down_to_at_least_one_slot(fraction, slots):
    plan = plan_memory(None, fraction, **PARTS, **MODEL)
    assert plan.slots == slots
    assert plan.slot_bytes == slots * 50
    assert plan.cache_fraction == slots / 24
    assert plan.host_bytes == 1200


def test_a_fraction_meant_as_whole_slots_survives_floating_point():
    sizes = {**PARTS, "expert_bytes": 1, "num_layers": 1, "num_experts": 100}
    assert plan_memory(None, 0.29, **sizes).slots == 29


@pytest.mark.parametrize("fraction", [0, -0.1, 1.01, float("nan")])
def test_fractions_out_of_range_are_refused(fraction):
    with pytest.raises(InputError, match="above 0 and at most 1"):
        plan_memory(None, fraction, **PARTS, **MODEL)


def test_budget_and_fraction_together_are_refused():
    with pytest.raises(InputError, match="leave one of them out"):
        plan_memory(2000, 0.5, **PARTS, **MODEL)
