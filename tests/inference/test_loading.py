"""Loading within bounds: host memory, experts left on disk, quantised experts, and plans without weights."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from random_checkpoint import write_random_checkpoint

from eval import generate, plan
from expertflow_jax import OffloadedModel, cli
from expertflow_jax.checkpoints import load_model as load_module
from expertflow_jax.checkpoints import save, save_hf
from expertflow_jax.errors import InputError
from expertflow_jax.inference.loading import load_model
from expertflow_jax.inference.planning import ModelSizes, plan_service
from expertflow_jax.locate import locate

ROOT = Path(__file__).parents[2]
GOLDENS = ROOT / "tests" / "goldens" / "models"
FULL_SIZE = ROOT / "configs" / "models"
IDS = np.random.default_rng(0).integers(12, 40, (3, 7))


def python(*arguments: object) -> str:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "2"}
    done = subprocess.run(
        [sys.executable, *map(str, arguments)], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    ("mebibytes", "dtype"),
    [
        (160, "bfloat16"),
        (400, "float32"),
        (800, "bfloat16"),
    ],
)
@pytest.mark.slow
def test_host_memory_stays_within_a_tenth_of_the_checkpoint(tmp_path, monkeypatch, mebibytes, dtype):
    monkeypatch.setattr(save, "SHARD_BYTES", mebibytes * 2**20 // 3)
    stored = write_random_checkpoint(tmp_path / "model", mebibytes, dtype)
    assert len(list((tmp_path / "model").glob("*.safetensors"))) > 2
    grown = int(python("tests/inference/load_and_measure.py", tmp_path / "model"))
    assert 0.9 * stored < grown <= 1.1 * stored
    # with a budget, below it plus what any process needs
    bounded = int(python("tests/inference/load_and_measure.py", tmp_path / "model", "60MiB"))
    assert bounded <= (60 + 16) * 2**20


def answers(directory, **options):
    options = {"policy": "on_demand", "cache_fraction": 0.25, "max_batch_size": 3, "max_tokens": 16} | options
    with OffloadedModel.from_pretrained(str(directory), **options) as model:
        logits = model.logits(IDS)
        found = model.generate(IDS, max_new_tokens=4)
        return logits, [answer.token_ids for answer in found], model.stats(), model.memory_plan()


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """A golden as the hub lays its experts out (base), and in bfloat16; one whose experts have no gate."""
    directory = tmp_path_factory.mktemp("stored") / "narrow"
    module = load_module(GOLDENS / "base")
    save_hf(directory, module.config, module, jnp.bfloat16)
    return {"float32": GOLDENS / "base", "bfloat16": directory, "ungated": GOLDENS / "switch_small_capacity"}


KINDS = ["float32", "bfloat16", "ungated"]
EXPERT_DTYPES = [None, "int8", "int4"]
FAST = [("float32", None)]
COMBINATIONS = [
    pytest.param(kind, dtype, marks=() if (kind, dtype) in FAST else pytest.mark.slow)
    for kind in KINDS
    for dtype in EXPERT_DTYPES
]


@pytest.mark.parametrize(("kind", "expert_dtype"), COMBINATIONS)
def test_offloaded_is_bit_identical_to_resident_from_all_tiers(stored, kind, expert_dtype):
    resident = answers(stored[kind], policy="resident", cache_fraction=1.0, expert_dtype=expert_dtype)
    least = host_minimum(stored[kind], expert_dtype)
    for budget in (None, least, least + 3 * resident[3].expert_bytes):
        logits, tokens, stats, memory = answers(stored[kind], expert_dtype=expert_dtype, host_memory_budget=budget)
        np.testing.assert_array_equal(logits, resident[0])
        assert tokens == resident[1]
        assert stats["lossless"] is (expert_dtype is None)
        assert stats["expert_dtype"] == (expert_dtype or ("bfloat16" if kind == "bfloat16" else "float32"))
        requests = stats["urgent_transfers"] + stats["prefetches"] + stats["background_transfers"]
        assert stats["bytes_transferred"] == requests * memory.expert_bytes
        assert (stats["disk_reads"] > 0) is (budget is not None)
        if budget is not None:
            assert memory.host_bytes <= budget
            assert memory.disk_bytes > 0


def host_minimum(directory, expert_dtype) -> int:
    with pytest.raises(InputError, match="host_memory_budget 1B is below the minimum of") as caught:
        load_model(str(directory), expert_dtype=expert_dtype, host_memory_budget=1)
    return int(str(caught.value).split("minimum of ")[1].split()[0])


def test_quantised_experts_are_near_and_smaller(stored):
    exact, *_, full = answers(stored["float32"])
    for expert_dtype, near, smaller in (("int8", 0.02, 3.5), ("int4", 0.35, 6)):
        logits, _, _, memory = answers(stored["float32"], expert_dtype=expert_dtype)
        assert 0 < np.abs(logits - exact).max() <= near * np.abs(exact).max()
        assert full.expert_bytes / memory.expert_bytes >= smaller
        assert memory.host_bytes == memory.num_layers * memory.num_experts * memory.expert_bytes


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"expert_dtype": "int3"}, "choose int8 or int4"),
        ({"host_memory_budget": "some"}, "8GiB"),
        ({"host_memory_budget": "1KiB"}, "host_memory_budget 1.00KiB is below the minimum"),
    ],
)
def test_what_cannot_be_loaded_is_refused(options, said):
    with pytest.raises(InputError, match=said) as caught:
        load_model(str(GOLDENS / "base"), **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["digit_scenes_moe", "base", "switch_small_capacity"])
@pytest.mark.parametrize("options", [{}, {"expert_dtype": "int4"}, {"dtype": "bfloat16", "expert_dtype": "int8"}])
def test_a_plan_needs_no_weights(tmp_path, name, options):
    source = locate(name if name == "digit_scenes_moe" else str(GOLDENS / name))
    shutil.copy(source / "config.json", tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    described = ModelSizes.described_in(tmp_path, options.get("dtype"), options.get("expert_dtype"), None)
    model = load_model(str(source), options.get("dtype"), expert_dtype=options.get("expert_dtype"))
    loaded = ModelSizes.of(model)
    assert described == loaded, values.get("dtype")


@pytest.mark.parametrize(
    ("name", "experts"),
    [
        pytest.param("qwen3_vl_30b_a3b", 6144, marks=pytest.mark.slow),
        ("mixtral_8x7b", 256),
        pytest.param("aria", 1792, marks=pytest.mark.slow),
    ],
)
def test_full_size_models_fit_three_cards(name, experts):
    slots = []
    for expert_dtype in (None, "int4"):
        sizes = ModelSizes.described_in(FULL_SIZE / name, None, expert_dtype, None)
        for budget in ("8GiB", "16GiB", "24GiB"):
            _, memory = plan_service(
                sizes,
                None,
                memory_budget=budget,
                cache_fraction=None,
                max_batch_size=1,
                max_tokens=1024,
                max_image_tokens=256,
            )
            assert memory.num_layers * memory.num_experts == experts
            slots.append(memory.slots)
    assert slots[0] < slots[1] < slots[2]
    # four times the experts in the same memory, as far as there are any
    assert all(small >= min(3.5 * full, experts) for full, small in zip(slots[:3], slots[3:], strict=True))


def test_half_of_the_experts_of_switch_base_128_fit_eight_gibibytes():
    sizes = ModelSizes.described_in(FULL_SIZE / "switch_base_128", "bfloat16", None, None)
    assert sizes.layout.nbytes == 2 * 768 * 3072 * 2
    assert len(sizes.config.text.moe_layers) == 12
    parameters = sizes.dense_bytes / 2 + 12 * 128 * 2 * 768 * 3072
    assert 7.3e9 < parameters < 7.5e9  # of the published model
    limits = {"cache_fraction": None, "max_batch_size": 1, "max_tokens": 512, "max_image_tokens": 256}
    _, memory = plan_service(sizes, None, memory_budget="8GiB", **limits)
    assert memory.num_layers * memory.num_experts == 1536
    assert 768 <= memory.slots < 1536


def test_the_sizes_of_qwen3_vl_30b_a3b():
    sizes = ModelSizes.described_in(FULL_SIZE / "qwen3_vl_30b_a3b", None, None, "32GiB")
    assert sizes.layout.nbytes == 3 * 2048 * 768 * 2
    assert 31.0e9 < sizes.dense_bytes / 2 + 6144 * 3 * 2048 * 768 < 31.2e9  # parameters of the published model
    assert sizes.host.host_bytes <= 32 * 2**30 < sizes.host.host_bytes + sizes.layout.nbytes
    assert sizes.host.disk_bytes == (6144 - sizes.host.pinned) * sizes.layout.nbytes


def run(command, capsys, *arguments: str) -> tuple[int, str, str]:
    code = cli.run_command(
        command.main,
        description="test",
        needs_workdir=False,
        options=getattr(command, "_options", None),
        argv=list(arguments),
    )
    said = capsys.readouterr()
    return code, said.out, said.err


def test_generate_plans_a_full_size_model(capsys):
    model = f"--config.model={FULL_SIZE / 'qwen3_vl_30b_a3b'}"
    config = f"--config={ROOT / 'configs/generate.py'}"
    code, out, _ = run(generate, capsys, config, model, "--config.memory_budget=16GiB", "--dry_run")
    assert code == 0
    assert "of 6144 expert slots" in out
    assert "host, 6144 experts pinned" in out
    code, _, err = run(generate, capsys, config, model, "--config.memory_budget=4GiB", "--dry_run")
    assert (code, err.count("\n")) == (2, 1)
    assert "below the minimum" in err
    code, _, err = run(generate, capsys, config)
    assert (code, err.count("\n")) == (2, 1)
    assert "--prompt" in err


def test_plans_for_several_budgets(capsys):
    config = f"--config={ROOT / 'configs/plan.py'}"
    model = f"--config.model={FULL_SIZE / 'mixtral_8x7b'}"
    code, out, _ = run(plan, capsys, config, model, "--config.memory_budgets=('1GiB','8GiB','24GiB')")
    assert code == 0
    assert "of 256" in out
    assert "memory_budget 1.00GiB is below the minimum" in out
    code, _, err = run(plan, capsys, config, model, "--config.memory_budgets=('1GiB',)")
    assert (code, err.count("\n")) == (2, 1)
    code, _, err = run(plan, capsys, config, model, "--config.predictor=digit_scenes_predictor")
    assert "train one for this model" in err
