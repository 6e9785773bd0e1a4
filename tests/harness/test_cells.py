"""From a config's grids to cells, and what a policy's text means: order, and one clear line for bad values."""

import ml_collections
import pytest

from configs import quickstart, study_base, throughput_cpu
from expertflow_jax.errors import InputError
from expertflow_jax.harness.looks import ordered, policy_look
from expertflow_jax.offload.policies import POLICIES, OnDemand
from expertflow_jax.offload.store import ExpertSizes
from expertflow_jax.offload.variant import RESIDENT, Variant, new_engine
from expertflow_jax.studies.accuracy.grid import cells
from expertflow_jax.studies.throughput.grid import cells_of


def study(**grid) -> ml_collections.ConfigDict:
    config = study_base.get_config()
    config.tasks = ("mmbench",)
    config.grids.one = study_base.grid(**({"policies": ("on_demand",), "cache_fractions": (0.5,)} | grid))
    return config


def test_a_cell_that_knows_the_truth_comes_after_its_resident_run():
    listed = cells(study(policies=("expertflow(truth)",), schedulers=("greedy",)))
    assert [(cell.policy, cell.scheduler) for cell in listed] == [
        ("resident", "fifo"),
        ("resident", "greedy"),
        ("expertflow(truth)", "greedy"),
    ]
    assert not listed[-1].forecasts or listed[-1].scheduler == "greedy"  # for its scheduler alone


def test_quantised_cells_that_know_the_truth_have_a_resident_run_of_their_own():
    listed = cells(study(policies=("oracle",), expert_dtypes=("int8",)))
    assert {(cell.policy, cell.expert_dtype) for cell in listed} == {
        ("resident", None),
        ("resident", "int8"),
        ("oracle", "int8"),
    }


def test_throughput_cells_come_in_the_order_of_the_file():
    models = list(dict.fromkeys(cell.model for cell in cells_of(throughput_cpu.get_config())))
    assert models[:3] == ["qwen3_vl_30b_a3b", "mixtral_8x7b", "digit_scenes_moe"]


def test_the_quickstart_has_each_cell_once():
    listed = cells(quickstart.get_config())
    assert len(listed) == len(set(listed)) == 184


@pytest.mark.parametrize(
    ("grid", "words"),
    [
        ({"policies": ("on_demnd",)}, "grids.one.policies.*did you mean 'on_demand'"),
        ({"policies": ("on_demand(truth)",)}, "cannot read this forecast"),
        ({"policies": ("expertflow(trth)",)}, "did you mean 'truth'"),
        ({"schedulers": ("gredy",)}, "did you mean 'greedy'"),
        ({"miss_policies": ("drap",)}, "did you mean 'drop'"),
        ({"expert_dtypes": ("int3",)}, "did you mean 'int8'. Known: int8, int4"),
        ({"cache_fractions": (0.0,)}, r"0.0 is not in \(0, 1\]"),
        ({"cache_fractions": (True,)}, "True is not in"),
        ({"cache_fractions": ()}, "name cache_fractions or memory_budgets"),
    ],
)
def test_values_that_cannot_be_are_refused(grid, words):
    with pytest.raises(InputError, match=words):
        cells(study(**grid))


def test_an_unknown_key_of_a_grid_is_refused():
    config = study()
    with config.grids.one.unlocked():
        config.grids.one.polices = ("resident",)
    with pytest.raises(InputError, match="key 'polices' does not exist; did you mean 'policies'"):
        cells(config)


@pytest.mark.parametrize("text", ["expertflow", "expertflow(truth)", "expertflow(none)", "oracle", "resident"])
def test_a_label_means_the_variant_that_it_was_made_of(text):
    variant = Variant.of(text)
    assert variant.label == text
    assert Variant.of(variant.label) == variant == Variant.of(variant)


def test_a_policy_that_reads_no_horizon_has_no_forecast_and_objects_are_taken():
    assert Variant.of(OnDemand).forecast == "none"
    policy = OnDemand()
    assert Variant.of(policy).label == "on_demand"
    with new_engine(ExpertSizes(2, 4, 64), Variant.of(policy), 3) as engine:
        assert engine.policy is policy
        assert engine.num_slots == 3


def test_what_keeps_everything_has_a_slot_for_every_expert():
    assert RESIDENT.whole
    with new_engine(ExpertSizes(2, 4, 64), RESIDENT, 3) as engine:
        assert engine.num_slots == 8


def test_every_policy_has_a_look_of_its_own_and_strangers_keep_theirs():
    looks = [policy_look(name) for name in (*POLICIES, "expertflow(truth)")]
    assert len(set(looks)) == len(looks)
    assert policy_look("mine:Policy") == policy_look("mine:Policy")
    assert policy_look("mine:Policy") not in looks
    assert ordered(["zeta", "expertflow(truth)", "oracle", "expertflow"]) == [
        "expertflow",
        "expertflow(truth)",
        "oracle",
        "zeta",
    ]
