"""Aria the whole way over the benchmark's images: traces and a predictor of its own, its costs, and a study at half of
the experts whose lossless cells are bit-identical."""

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))
from aria_checkpoint import write_aria

from eval import calibrate, study
from expertflow_jax import cli
from expertflow_jax.tasks.digit_scenes.files import write_benchmark
from train import predictor


def run(module, *arguments: str) -> int:
    """As the command line does."""
    options = {"needs_workdir": False, "options": calibrate._options} if module is calibrate else {}
    return cli.run_command(module.main, description="", argv=list(arguments), **options)


@pytest.mark.slow
def test_predictor_costs_and_study(tmp_path):
    write_aria(tmp_path / "aria")
    write_benchmark(tmp_path / "data", train=24, val=24, seed=0)
    model = [f"--config.model={tmp_path / 'aria'}", f"--config.data_dir={tmp_path / 'data'}"]
    trained = run(
        predictor,
        "--config=configs/digit_scenes_predictor.py",
        *model,
        f"--workdir={tmp_path / 'predictor'}",
        "--config.sequences.train.vqa_v2=16",
        "--config.sequences.train.mmbench=0",
        "--config.sequences.calibration.vqa_v2=4",
        "--config.sequences.calibration.mmbench=0",
        "--config.sequences.held_out.vqa_v2=4",
        "--config.sequences.held_out.mmbench=0",
        "--config.sequences.out_of_distribution=0",
        "--config.record_batch_size=8",
        "--config.predictor.width=16",
        "--config.predictor.hidden=16",
        "--config.training.steps=10",
        "--config.training.batch_size=8",
    )
    assert trained == 0
    served = [*model, f"--config.predictor={tmp_path / 'predictor' / 'export'}"]
    costs = tmp_path / "costs.json"
    measured = ["--image_grid=1,7,7", "--repeats=2", f"--output={costs}"]
    assert run(calibrate, "--config=configs/quickstart.py", *served, *measured) == 0
    studied = run(
        study,
        "--config=configs/quickstart.py",
        *served,
        f"--config.costs={costs}",
        f"--workdir={tmp_path / 'study'}",
        "--config.num_examples=8",
        "--config.batch_size=4",
        "--config.bootstrap_samples=100",
        "--config.grids.policies.policies=('resident','cache_moe','expertflow')",
        "--config.grids.policies.cache_fractions=(0.5,)",
        "--config.grids.blocks.policies=('expertflow',)",
        "--config.grids.blocks.cache_fractions=(0.5,)",
        "--config.grids.blocks_scheduled.policies=()",
        "--config.grids.literature.policies=()",
        "--config.grids.rings.policies=()",
        "--config.grids.cache_moe_greedy.cache_fractions=(0.5,)",
        "--config.grids.schedulers.cache_fractions=(0.5,)",
        "--config.grids.schedulers.schedulers=('random',)",
        "--config.grids.lossy.cache_fractions=(0.5,)",
        "--config.grids.lossy.schedulers=('fifo',)",
        "--config.grids.lossy.miss_policies=('drop',)",
    )
    assert studied == 0
    rows = [json.loads(line) for line in (tmp_path / "study" / "results.jsonl").read_text().splitlines()]
    assert {(row["task"], row["policy"]) for row in rows} >= {
        (task, policy) for task in ("vqa_v2", "mmbench") for policy in ("resident", "cache_moe", "expertflow")
    }
    assert all(row["bit_identical"] for row in rows if row["lossless"])
    assert all(row["misses"] > 0 for row in rows if row["policy"] == "cache_moe")
    assert all(row["peak_device_bytes"] <= row["memory_budget_bytes"] for row in rows)
