"""`train.moe` as a user runs it: a checkpoint that serves, with a card that says how good it is."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from expertflow_jax import cli
from expertflow_jax.api import OffloadedModel
from expertflow_jax.errors import InputError
from expertflow_jax.harness.workdir import Workdir
from expertflow_jax.tasks.digit_scenes.items import make_items
from expertflow_jax.training.moe_run import train_and_export
from train import moe as command

ROOT = Path(__file__).parents[2]


def train(workdir: Path, *options: str) -> subprocess.CompletedProcess:
    words = [sys.executable, "-m", "train.moe", "--config=configs/digit_scenes_moe.py", f"--workdir={workdir}"]
    return subprocess.run([*words, *options], cwd=ROOT, capture_output=True, text=True)


@pytest.mark.slow
def test_a_short_run_exports_a_checkpoint_that_answers(tmp_path):
    options = ["--config.steps=3", "--config.batch_size=16", "--config.eval_examples=32"]
    done = train(tmp_path, *options)
    assert done.returncode == 0, done.stderr
    card = (tmp_path / "export" / "README.md").read_text()
    assert "--config.steps=3" in card
    assert "| vqa_v2 |" in card
    assert "| vqa_v2/question_only |" in card
    item = make_items("val", 1, seed=0)[0]
    with OffloadedModel.from_pretrained(str(tmp_path / "export"), cache_fraction=0.5, policy="on_demand") as model:
        assert model.generate([item.question], [item.image], max_new_tokens=2)
    before = (tmp_path / "export" / "model.safetensors").read_bytes()
    assert train(tmp_path, *options).returncode == 0  # a run that has ended is exported again, the same
    assert (tmp_path / "export" / "model.safetensors").read_bytes() == before
    assert (tmp_path / "export" / "README.md").read_text() == card
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == len({
        json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()
    })  # fmt: skip
    refused = train(tmp_path, "--config.steps=4")
    assert refused.returncode == 2
    assert "another --workdir" in refused.stderr


def test_a_run_on_other_scans_is_refused_before_it_begins(tmp_path):
    arguments = ["--config=configs/digit_scenes_moe.py", f"--workdir={tmp_path}", "--config.steps=3"]
    invocation = cli.parse(arguments, description="")
    with Workdir(tmp_path, json.loads(invocation.config.to_json_best_effort())) as place:
        place.claim_inputs({"scikit-learn's handwritten digits": "of another release"})
    with pytest.raises(InputError, match=r"other inputs: scikit-learn's handwritten digits is not what it was"):
        train_and_export(invocation)
    (tmp_path / "inputs.json").unlink()
    (tmp_path / "metrics.jsonl").write_text('{"step": 0, "loss": 1}\n')
    with pytest.raises(InputError, match=r"has rows but no inputs\.json"):
        train_and_export(invocation)


def test_dry_run_prints_the_plan(tmp_path, capsys):
    arguments = ["--config=configs/digit_scenes_moe.py", f"--workdir={tmp_path / 'none'}", "--dry_run"]
    assert cli.run_command(command.main, description="", argv=arguments) == 0
    assert "parameters" in capsys.readouterr().out
    assert not (tmp_path / "none").exists()
