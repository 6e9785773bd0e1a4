"""Every text family the whole way: traces and a predictor of its own, its costs, and a study of perplexity at half of
the experts whose lossless cells are bit-identical."""

import json
from pathlib import Path

import numpy as np
import pytest

from eval import calibrate, study
from expertflow_jax import cli
from expertflow_jax.simulation.costs import ComputeCosts
from train import predictor

GOLDENS = Path(__file__).parents[2] / "goldens" / "models"
FAMILIES = ("mixtral_window", "olmoe_clip", "qwen2_moe_window", "qwen3_moe_stretched", "switch_small_capacity")


def run(module, *arguments: str) -> int:
    """As the command line does."""
    options = {"needs_workdir": False, "options": calibrate._options} if module is calibrate else {}
    return cli.run_command(module.main, description="", argv=list(arguments), **options)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Random documents of token ids, train and val."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "text").mkdir()
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        documents = [{"input_ids": rng.integers(5, 48, size=16).tolist()} for _ in range(32)]
        (folder / f"text/{split}.jsonl").write_text("\n".join(map(json.dumps, documents)) + "\n")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("case", FAMILIES)
def test_predictor_costs_and_study(case, data, tmp_path):
    model = [f"--config.model={GOLDENS / case}", f"--config.data_dir={data}", "--config.text_tokens=16"]
    trained = run(
        predictor,
        "--config=configs/text_predictor.py",
        *model,
        f"--workdir={tmp_path / 'predictor'}",
        "--config.sequences.train.text=24",
        "--config.sequences.calibration.text=8",
        "--config.sequences.held_out.text=8",
        "--config.predictor.width=16",
        "--config.predictor.hidden=16",
        "--config.training.steps=20",
        "--config.training.batch_size=8",
    )
    assert trained == 0
    served = [*model, f"--config.predictor={tmp_path / 'predictor' / 'export'}"]
    costs = tmp_path / "costs.json"
    assert run(calibrate, "--config=configs/text_study.py", *served, f"--output={costs}", "--repeats=2") == 0
    assert ComputeCosts.from_json(costs.read_text()).route is not None
    studied = run(
        study,
        "--config=configs/text_study.py",
        *served,
        f"--config.costs={costs}",
        f"--workdir={tmp_path / 'study'}",
        "--config.num_examples=8",
        "--config.batch_size=4",
        "--config.bootstrap_samples=100",
        "--config.grids.lossless.policies=('resident','on_demand','cache_moe','expertflow')",
        "--config.grids.lossless.cache_fractions=(0.5,)",
        "--config.grids.lossy.cache_fractions=(0.5,)",
        "--config.grids.lossy.miss_policies=('drop',)",
    )
    assert studied == 0
    rows = [json.loads(line) for line in (tmp_path / "study" / "results.jsonl").read_text().splitlines()]
    assert {row["policy"] for row in rows} == {"resident", "on_demand", "cache_moe", "expertflow"}
    assert all(row["bit_identical"] for row in rows if row["lossless"])
    assert all(row["misses"] > 0 for row in rows if row["policy"] == "on_demand")
