"""XLA's caps on a GPU machine, on cards and machines that are made up."""

import os
import subprocess
import sys

import pytest

from expertflow_jax.errors import InputError
from expertflow_jax.gpu_caps import Machine, Needs, awaits_gpu, check_running, settings_for, settings_of_whole

GIB = 1024**3
RTX_4090, H100 = Machine(24 * GIB, 128 * GIB), Machine(80 * GIB, 256 * GIB)
MIXTRAL = 84 * GIB  # its experts in bfloat16
HOST, FRACTION = "XLA_PJRT_GPU_HOST_MEMORY_LIMIT_GB", "XLA_CLIENT_MEM_FRACTION"
OLD = "XLA_PYTHON_CLIENT_MEM_FRACTION"


def test_what_the_defaults_hold_needs_no_variable():
    assert settings_for(Needs(54 * GIB, 17 * GIB), RTX_4090, {}) == {}


@pytest.mark.parametrize(("machine", "budget"), [(RTX_4090, 22 * GIB), (H100, 70 * GIB)])
def test_both_caps_are_raised_to_what_is_needed(machine, budget):
    settings = settings_for(Needs(MIXTRAL, budget), machine, {})
    assert MIXTRAL < int(settings[HOST]) * GIB < machine.host_bytes
    assert budget < float(settings[FRACTION]) * machine.card_bytes < machine.card_bytes
    check_running(Needs(MIXTRAL, budget), int(float(settings[FRACTION]) * machine.card_bytes), settings)


@pytest.mark.parametrize(
    ("needs", "environment", "text"),
    [
        (Needs(MIXTRAL), {HOST: "70"}, f"{HOST} allows 70.00GiB; set {HOST}=88"),
        (Needs(200 * GIB), {}, "the machine has 128.00GiB; state a lower host_memory_budget"),
        (Needs(0, 22 * GIB), {FRACTION: ".5"}, f"{FRACTION}=.5 leaves 12.00GiB to JAX; set {FRACTION}=0.926"),
        (Needs(0, 22 * GIB), {OLD: "0.8"}, f"{OLD}=0.8 leaves 19.20GiB to JAX; set {OLD}=0.926"),
        (Needs(0, 24 * GIB), {}, "the card has 24.00GiB, of which 22.78GiB can be had; state a lower memory_budget"),
        (Needs(0, GIB), {FRACTION: "most"}, "'most': write a fraction of the card's memory, such as 0.9"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(needs, environment, text):
    with pytest.raises(InputError) as refused:
        settings_for(needs, RTX_4090, environment)
    assert text in str(refused.value)
    assert "\n" not in str(refused.value)


def test_too_late_is_said_with_the_variable_and_its_value():
    with pytest.raises(InputError, match=f"allows 64.00GiB; set {HOST}=88 before Python starts"):
        check_running(Needs(MIXTRAL), 18 * GIB, {})
    with pytest.raises(InputError, match=f"{FRACTION}=0.75 leaves 18.00GiB to JAX; set {FRACTION}=0.926 before"):
        check_running(Needs(0, 22 * GIB), 18 * GIB, {})
    with pytest.raises(InputError, match="the card holds no more: state a lower memory_budget"):
        check_running(Needs(0, 24 * GIB), 18 * GIB, {})
    check_running(Needs(MIXTRAL, 18 * GIB), 18 * GIB, {HOST: "88"})
    check_running(Needs(0, 22 * GIB), None, {})  # an allocator without a limit


def test_an_allocator_without_a_share_of_the_card_is_left_alone():
    environment = {"XLA_PYTHON_CLIENT_ALLOCATOR": "platform"}
    assert settings_for(Needs(0, 22 * GIB), RTX_4090, environment) == {}
    assert FRACTION not in settings_of_whole(RTX_4090, environment)


def test_a_command_takes_the_machine_but_what_the_user_has_set():
    settings = settings_of_whole(H100, {})
    assert settings[HOST] == "256"
    assert 0.98 < float(settings[FRACTION]) < 1
    assert settings_of_whole(H100, {HOST: "90", OLD: "0.5"}) == {}
    assert settings_of_whole(Machine(None, 32 * GIB), {}) == {HOST: "64"}


def test_only_what_may_become_a_gpu_is_prepared_for():
    assert not awaits_gpu({"JAX_PLATFORMS": "cpu"})


SCRIPT = """
from pathlib import Path
from expertflow_jax import gpu_caps
from expertflow_jax.inference.planning import ModelSizes, plan_service
from expertflow_jax.models.device_form import GPU
sizes = ModelSizes.described_in(Path("configs/models/mixtral_8x7b"), None, None, None, GPU)
_, plan = plan_service(sizes, None, memory_budget="22GiB", cache_fraction=None, max_batch_size=None,
                       max_tokens=1024, max_image_tokens=0)
assert not gpu_caps.backend_runs()
print(gpu_caps.settings_for(gpu_caps.Needs(sizes.pinned_bytes, plan.total_bytes),
                            gpu_caps.Machine(24 * 1024**3, 128 * 1024**3), {}))
"""


@pytest.mark.slow
def test_a_plan_is_made_before_the_backend_starts():
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT], env=os.environ | {"JAX_PLATFORMS": "cpu"}, capture_output=True, text=True
    )
    assert run.stderr == ""
    assert run.stdout == f"{{'{HOST}': '88', '{FRACTION}': '0.924'}}\n"
