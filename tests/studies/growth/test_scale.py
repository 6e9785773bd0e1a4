"""The simulate command on a small config: rows, report, resumption, errors; and the fits and shares that it states."""

import json
from pathlib import Path

import numpy as np
import pytest

from eval import simulate
from expertflow_jax import cli
from expertflow_jax.simulation.host_cost import HostCell, measure_host
from expertflow_jax.simulation.machines import gpu_machine
from expertflow_jax.studies.growth.growth import growth
from expertflow_jax.workloads.shapes import find_shape

SMALL = (
    "--config.layers=(2,3,4)",
    "--config.experts=(8,16,32)",
    "--config.num_layers=2",
    "--config.num_experts=16",
    "--config.top_k=2",
    "--config.batch_sizes=(1,)",
    "--config.steps=2",
    "--config.repeats=1",
    "--config.windows=(1,24)",
    "--config.workloads.qwen3_vl_30b_a3b.num_layers=3",
    "--config.workloads.qwen3_vl_30b_a3b.num_experts=16",
    "--config.workloads.qwen3_vl_30b_a3b.prompt_tokens=4",
)


def run(*arguments):
    command = ["--config=configs/scale_cpu.py", *SMALL, *arguments]
    return cli.run_command(simulate.main, description=simulate.__doc__, argv=command)


@pytest.mark.slow
def test_a_run_writes_rows_and_a_report_and_goes_on_after_a_kill(tmp_path, capsys):
    workdir = tmp_path / "run"
    assert run(f"--workdir={workdir}") == 0
    results = workdir / "results.jsonl"
    lines = results.read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    # per policy: 3 at the target's size, 3 numbers of layers and 3 of experts; 4 schedulers x 2 windows x 2 workloads
    assert [row["kind"] for row in rows] == ["host"] * 3 * 9 + ["scheduler"] * 16
    for row in rows:
        if row["kind"] == "host":
            assert 0 < row["host_us"] <= row["host_us_median"]
            assert row["asked"] == 2  # one sequence, two experts per token
        else:
            assert row["share"] == pytest.approx(row["seconds"] / row["scheduled_seconds"])
    assert all((workdir / "plots" / name).stat().st_size for name in ("host.png", "throughput.png", "schedulers.png"))
    report = (workdir / "report.md").read_text()
    assert "Host bookkeeping at the target's size" in report
    assert "plots/host.png" in report

    results.write_text("\n".join(lines[:-2]) + "\n" + lines[-2][:20])
    assert run(f"--workdir={workdir}") == 0
    again = results.read_text().splitlines()
    assert again[: len(lines) - 2] == lines[:-2]
    assert len(again) == len(lines)
    assert run(f"--workdir={workdir}", "--config.steps=3") == 2
    assert "another config" in capsys.readouterr().err


def test_a_rerun_with_other_recorded_costs_is_refused(tmp_path, capsys):
    costs = tmp_path / "costs.json"
    costs.write_bytes(Path("configs/costs/digit_scenes_moe_cpu.json").read_bytes())
    small = (
        "--config.policies=('on_demand',)",
        "--config.schedulers=('fifo',)",
        f"--config.workloads.digit_scenes_moe.recorded_costs={costs}",
        f"--workdir={tmp_path / 'run'}",
    )
    assert run(*small) == 0
    costs.write_bytes(costs.read_bytes() + b"\n")
    capsys.readouterr()
    assert run(*small) == 2
    error = capsys.readouterr().err.strip()
    assert "workloads.digit_scenes_moe.recorded_costs is not what it was" in error
    assert "\n" not in error


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("--config.policies=('lru',)", "lru"),
        ("--config.gpu=rtx9", "rtx9"),
        ("--config.layers=(0,)", "layers"),
        ("--config.cache_fraction=0.0", "cache_fraction"),
        ("--config.schedulers=('best',)", "best"),
        ("--config.windows=(0,)", "windows"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(override, named, capsys):
    assert run("--dry_run", override) == 2
    error = capsys.readouterr().err.strip()
    assert named in error
    assert "\n" not in error


def test_a_dry_run_names_the_cells(capsys):
    assert run("--dry_run") == 0
    assert "cells; no weights" in capsys.readouterr().out


def test_a_power_is_found_with_its_interval():
    x = np.array([1.0, 2, 4, 8, 16])
    found = growth(x, 3 * x**0.5)
    assert found.exponent == pytest.approx(0.5)
    assert found.low == pytest.approx(found.high)
    noisy = growth(x, 3 * x**0.5 * np.array([1.1, 0.9, 1.0, 1.1, 0.9]))
    assert noisy.low < 0.5 < noisy.high
    assert growth([1, 2], [1, 2]) is None
    assert growth([1, 2, 3], [0, 1, 2]) is None


def test_the_gpu_reads_what_a_layer_step_needs():
    layer = find_shape("qwen3_vl_30b_a3b").full
    machine = gpu_machine("rtx4090", layer)
    assert machine.expert_bytes == 3 * 2048 * 768 * 2
    assert machine.costs.per_expert == pytest.approx(machine.expert_bytes / 1008e9)
    cell = HostCell("target", "cache_moe", 2, 16, 4, 1, 1.0)
    cost = measure_host(cell, machine, steps=3, repeats=1, seed=0)
    step = 2 * (machine.costs.attend_seconds(1) + 4 * machine.costs.per_expert)
    assert cost.tokens_per_second == pytest.approx(1 / step)
    assert cost.tokens_per_second_with_host < cost.tokens_per_second
    assert cost.hit_rate == cost.rounds == 1
