"""eval.doctor on a CPU: a cheap run of everything, and what it refuses."""

import dataclasses
import json
import subprocess
import sys

import pytest

from expertflow_jax.cli import load_config
from expertflow_jax.errors import InputError
from expertflow_jax.models.device_form import INTERPRETED_POOL, REPLACED
from expertflow_jax.studies.doctor import runner
from expertflow_jax.studies.doctor.findings import graded
from expertflow_jax.studies.doctor.model import RandomModel, group_finding
from expertflow_jax.workloads import shapes

SMALL = ("shape=mixtral_8x7b", "layers=2", "copy_megabytes=1", "repeats=1", "seconds=2", "steps=6")
NAMES = [
    "device",
    "caps",
    "bits of groups of 1 and 8",
    "link, pinned",
    "the engine's share",
    "upload behind a copy",
    "overlap",
    "decode, resident",
    "decode, half the experts",
    "bits, half and resident",
]


def config(*overrides):
    return load_config("configs/doctor.py", [f"--config.{override}" for override in overrides])


def test_a_cpu_is_looked_over_and_says_what_it_cannot_tell(tmp_path, capsys):
    runner.run(config(*SMALL), tmp_path)
    written = json.loads((tmp_path / "doctor.json").read_text())
    findings = {finding["name"]: finding for finding in written["findings"]}
    assert list(findings) == NAMES
    assert {name for name, finding in findings.items() if finding["verdict"] == "good"} == {
        "bits of groups of 1 and 8",
        "bits, half and resident",
    }
    assert all(finding["remedy"] for finding in findings.values() if finding["verdict"] == "cannot tell")
    assert findings["link, pinned"]["numbers"]["bytes_per_second"] > 0
    assert 0 < findings["decode, half the experts"]["numbers"]["hit_rate"] < 1
    assert written["environment"]["backend"] == "cpu"
    printed = capsys.readouterr().out
    assert "cannot tell" in printed
    assert "decode, half the experts" in printed


@pytest.mark.parametrize(
    ("override", "text"),
    [
        ("shape=gpt5", "config key shape"),
        ("size=huge", "config key size"),
        ("device_form=pol", "device_form 'pol' does not exist; did you mean 'pool'"),
        ("layers=1", "config key layers"),
        ("seconds=0", "config key seconds"),
        ("copy_megabytes=0", "config key copy_megabytes"),
    ],
)
def test_what_cannot_be_is_refused(tmp_path, override, text):
    with pytest.raises(InputError, match=text) as refused:
        runner.run(config(override), tmp_path / "run")
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "run").exists()


def test_a_plan_of_true_sizes_needs_no_weights(capsys):
    runner.plan(config("shape=mixtral_8x7b", "size=whole"))
    assert "4 layers of 8 experts, 336.00MiB each; host 10.98GiB" in capsys.readouterr().out


def test_the_command_ends_with_2_and_one_line(tmp_path):
    command = [sys.executable, "-m", "eval.doctor", "--config=configs/doctor.py", f"--workdir={tmp_path}"]
    run = subprocess.run([*command, "--config.shape=none"], capture_output=True, text=True)
    assert run.returncode == 2
    assert run.stderr.startswith("error: config key shape")
    assert run.stderr.count("\n") == 1


@pytest.mark.parametrize("form", [REPLACED, INTERPRETED_POOL])
def test_bits_are_compared_in_a_gpus_forms(form):
    shape = dataclasses.replace(shapes.find_shape("mixtral_8x7b"), d_model=32, d_ff=64, num_layers=1)
    stages, store = shapes.build(shape, seed=0)
    finding = group_finding(RandomModel(stages.with_form(form), store))
    assert (finding.verdict, finding.numbers["form"]) == ("good", form.slots)


def test_grades_fall_with_the_figure():
    assert [graded(value, 0.8, 0.5) for value in (0.9, 0.6, 0.1)] == ["good", "weak", "bad"]
    assert [graded(-value, -0.3, -1.0) for value in (0.1, 0.6, 2.0)] == ["good", "weak", "bad"]
