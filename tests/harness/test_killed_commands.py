"""Every command that writes a workdir, killed at random moments and run again, ends where an undisturbed run ends."""

import dataclasses
import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
STUDY = """
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
    config.grids.lossless = study_base.grid(("resident", "cache_moe", "expertflow"), ("fifo",), cache_fractions=(0.25,))
    return config
"""


@dataclasses.dataclass(frozen=True)
class Command:
    """A command small enough to be run several times.

    Attributes:
      results: of a finished workdir, what every run ends with.
      first_kill: a path in the workdir; the first kill falls as soon as it is there.
    """

    module: str
    config: str
    results: Callable[[Path], Any]
    overrides: tuple[str, ...] = ()
    first_kill: str = ""

    def start(self, folder: Path, workdir: Path) -> subprocess.Popen:
        config = folder / "study.py"
        config.write_text(STUDY)
        options = [f"--config={self.config or config}", f"--workdir={workdir}"]
        return subprocess.Popen(
            [sys.executable, "-m", self.module, *options, *(f"--config.{override}" for override in self.overrides)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )


def rows(path: Path, *without: str) -> list[dict[str, Any]]:
    """Rows of a file in their order, without what is measured in real time."""
    loaded = [json.loads(line) for line in path.read_text().splitlines()]
    return [{key: value for key, value in row.items() if key not in without} for row in loaded]


def losses(folder: Path) -> list[tuple[int, float]]:
    return [(row["step"], row["loss"]) for row in rows(folder / "metrics.jsonl")]


def host_rows(workdir: Path) -> list[tuple]:
    keys = ("cell", "kind", "policy", "num_layers", "num_experts", "scheduler", "window", "hit_rate", "asked")
    return [tuple(row.get(key) for key in keys) for row in rows(workdir / "results.jsonl")]


def timed_rows(workdir: Path) -> list[tuple]:
    keys = ("model", "phase", "batch_size", "cache_fraction", "variant", "slots", "tokens")
    return [tuple(row.get(key) for key in keys) for row in rows(workdir / "results.jsonl")]


COMMANDS = {
    "scale": Command(
        "eval.simulate",
        "configs/scale_cpu.py",
        host_rows,
        (
            "layers=(2,)",
            "experts=(8,)",
            "num_layers=2",
            "num_experts=16",
            "top_k=2",
            "batch_sizes=(1,)",
            "steps=2",
            "repeats=1",
            "windows=(1,)",
            "workloads.qwen3_vl_30b_a3b.num_layers=3",
            "workloads.qwen3_vl_30b_a3b.num_experts=16",
            "workloads.qwen3_vl_30b_a3b.prompt_tokens=4",
        ),
        first_kill="results.jsonl",
    ),
    "study": Command(
        "eval.study",
        "",
        lambda workdir: (
            (workdir / "results.jsonl").read_bytes(),
            (workdir / "results.csv").read_bytes(),
            sorted(path.name for path in (workdir / "predictions").iterdir()),
        ),
        first_kill=".data.partial",
    ),
    "ablations": Command(
        "eval.simulate",
        "configs/ablations.py",
        lambda workdir: [  # the report names the command, and with it the workdir
            (workdir / name).read_bytes().replace(str(workdir).encode(), b"DIR")
            for name in ("ablations.jsonl", "ablations.md")
        ],
        ("shapes=()", "sequences=4", "new_tokens=1", "batch_sizes=(1,)", "cache_fractions=(0.5,)"),
        first_kill="ablations.jsonl",
    ),
    "throughput": Command("eval.throughput", "tests/studies/throughput/tiny.py", timed_rows, first_kill="links.json"),
    "train.moe": Command(
        "train.moe",
        "configs/digit_scenes_moe.py",
        lambda workdir: (losses(workdir), (workdir / "export" / "model.safetensors").read_bytes()),
        (
            "steps=8",
            "batch_size=8",
            "eval_examples=16",
            "log_every=1",
            "checkpoint_every=3",
            "text.num_hidden_layers=2",
            "text.num_experts=4",
            "official.train=64",
            "official.val=32",
        ),
        first_kill="checkpoints/3",
    ),
    "train.predictor": Command(
        "train.predictor",
        "configs/digit_scenes_predictor.py",
        lambda workdir: (losses(workdir / "training"), (workdir / "export" / "predictor.safetensors").read_bytes()),
        (
            "digit_scenes.train=24",
            "digit_scenes.val=24",
            "sequences.train.vqa_v2=16",
            "sequences.train.mmbench=0",
            "sequences.calibration.vqa_v2=8",
            "sequences.calibration.mmbench=0",
            "sequences.held_out.vqa_v2=8",
            "sequences.held_out.mmbench=0",
            "sequences.out_of_distribution=0",
            "record_batch_size=8",
            "predictor.width=16",
            "predictor.hidden=16",
            "training.steps=8",
            "training.batch_size=8",
            "training.log_every=1",
            "training.checkpoint_every=3",
        ),
        first_kill="training/checkpoints/3",
    ),
    "train.pregate": Command(
        "train.pregate",
        "configs/digit_scenes_pregates.py",
        lambda workdir: (losses(workdir), (workdir / "export" / "pregates.safetensors").read_bytes()),
        (
            "digit_scenes.train=16",
            "sequences=16",
            "record_batch_size=8",
            "hidden=8",
            "steps=8",
            "batch_tokens=32",
            "log_every=1",
            "checkpoint_every=3",
        ),
        first_kill="checkpoints/3",
    ),
    "claims": Command(
        "eval.claims",
        "configs/claims.py",
        lambda workdir: [(workdir / name).read_bytes() for name in ("results.jsonl", "claims.json")],
        (
            "sequences=8",
            "new_tokens=1",
            "batch_sizes=(4,)",
            "speed.switch.shapes=(('switch_base_8',2),)",
            "speed.large.shapes=(('mixtral_8x7b',2),)",
        ),
        first_kill="results.jsonl",
    ),
    "blocks": Command(
        "eval.simulate",
        "tests/studies/blocks/tiny_blocks.py",
        lambda workdir: (workdir / "results.jsonl").read_bytes(),
        first_kill="results.jsonl",
    ),
}

pytestmark = pytest.mark.slow  # tests/studies/accuracy/test_results.py kills a process that does nothing but write


def finish(process: subprocess.Popen) -> None:
    output, _ = process.communicate()
    assert process.returncode == 0, output


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", COMMANDS)
def test_a_killed_command_ends_where_an_undisturbed_one_does(name, tmp_path):
    command = COMMANDS[name]
    began = time.monotonic()
    finish(command.start(tmp_path, tmp_path / "whole"))
    seconds = time.monotonic() - began
    workdir, moments = tmp_path / "killed", random.Random(name)
    for kill in range(1 if name == "scale" else 3):
        process = command.start(tmp_path, workdir)
        if kill == 0:
            while process.poll() is None and not (workdir / command.first_kill).exists():
                time.sleep(0.01)
        else:
            time.sleep(moments.uniform(0.1, 0.9) * seconds)
        process.send_signal(signal.SIGKILL)
        process.communicate()
    finish(command.start(tmp_path, workdir))
    assert command.results(workdir) == command.results(tmp_path / "whole")
    assert not [path for path in workdir.rglob("*.partial") if path.name != ".lock"]
    finish(command.start(tmp_path, workdir))  # and once more: nothing changes
    assert command.results(workdir) == command.results(tmp_path / "whole")
