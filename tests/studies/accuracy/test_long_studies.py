"""Studies that take days: a cell that fails does not end them, and several processes give the rows of one."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from eval import study
from expertflow_jax import cli
from expertflow_jax.offload.policies.base import CachePolicy

ROOT = Path(__file__).parents[3]
CONFIG = """
from configs import study_base


def get_config():
    config = study_base.get_config()
    config.tasks = ("vqa_v2",)
    config.num_examples = 8
    config.batch_size = 4
    config.window = 8
    config.digit_scenes.train = 8
    config.digit_scenes.val = 24
    config.bootstrap_samples = 50
    config.grids.some = study_base.grid(POLICIES, cache_fractions=(0.25,))
    return config
"""


class Fragile(CachePolicy):
    """On demand, until it breaks."""

    name = "fragile"
    breaks = False

    def observe(self, layer, counts):
        if self.breaks:
            raise RuntimeError("a fuse\nhas blown")


FRAGILE = "test_long_studies:Fragile"


def write_config(folder: Path, *policies: str) -> Path:
    path = folder / "few.py"
    path.write_text(CONFIG.replace("POLICIES", repr(policies)))
    return path


def run(config: Path, workdir: Path, *arguments: str) -> int:
    argv = [f"--config={config}", f"--workdir={workdir}", *arguments]
    return cli.run_command(study.main, description="test", argv=argv)


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.slow
def test_a_failed_cell_is_recorded_and_tried_again(tmp_path, monkeypatch, capsys):
    config, workdir = write_config(tmp_path, FRAGILE, "cache_moe"), tmp_path / "run"
    monkeypatch.setattr(Fragile, "breaks", True)
    assert run(config, workdir) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: 1 of 3 cells failed: vqa_v2 test_long_studies:Fragile/fifo/wait @0.25 seed 0 (")
    for words in ("RuntimeError: a fuse has blown", "failures.jsonl", "rerun the same command"):
        assert words in error
    (failure,) = lines(workdir / "failures.jsonl")
    assert failure["error"] == "RuntimeError"
    assert failure["message"] == "a fuse\nhas blown"
    assert failure["time"] > 0
    rows = lines(workdir / "results.jsonl")
    assert [row["policy"] for row in rows] == ["resident", "cache_moe"]
    assert failure["cell_id"] not in [row["cell_id"] for row in rows]
    assert (workdir / "report.md").exists()

    monkeypatch.setattr(Fragile, "breaks", False)
    assert run(config, workdir) == 0
    assert lines(workdir / "failures.jsonl") == []
    again = lines(workdir / "results.jsonl")
    assert [row["policy"] for row in again] == ["resident", FRAGILE, "cache_moe"]
    assert [again[0], again[2]] == rows


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("launcher", ["local", "ray"])
def test_workers_give_the_rows_of_one_process(launcher, tmp_path, capsys):
    if launcher == "ray":
        pytest.importorskip("ray")
    config = write_config(tmp_path, "cache_moe", "expertflow", "oracle")
    # In a process without what other tests have left on the device, as the workers are.
    command = [sys.executable, "-m", "eval.study", f"--config={config}", f"--workdir={tmp_path / 'one'}"]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    assert run(config, tmp_path / "two", f"--config.launcher={launcher}", "--config.workers=2") == 0
    for name in ("results.jsonl", "results.csv", "groups.csv"):
        assert (tmp_path / "two" / name).read_bytes() == (tmp_path / "one" / name).read_bytes()
    assert run(config, tmp_path / "two") == 0  # the launcher is no part of what a workdir is of
    capsys.readouterr()
    assert run(config, tmp_path / "two", f"--config.launcher={launcher}", "--config.workers=2", "--dry_run") == 0
    assert f"launcher {launcher}: 2 workers" in capsys.readouterr().out
