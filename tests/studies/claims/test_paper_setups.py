"""The paper's set-ups: its figures stand beside their cells, and a second run repeats nothing."""

import json

import pytest

from configs import paper
from eval.simulate import main
from expertflow_jax import cli
from expertflow_jax.studies.claims.paper import cells_of, scheduled_cells
from expertflow_jax.studies.claims.paper_tables import hit_grid, scheduler_grid, speed_grid


def made_up_rows(config):
    """`expertflow` takes half as long as any other, and a third of that with a token scheduler."""
    rows = []
    for cell in cells_of(config):
        seconds = [1.0, 1.0] if cell.policy == "expertflow" else [2.0, 2.0]
        where = {key: getattr(cell, key) for key in ("shape", "cache_size", "batch_size", "policy", "protocol")}
        rows.append({"kind": "speed", **where, "seconds": seconds, "hit_rate": 0.5})
    for cell, scheduler in scheduled_cells(config):
        seconds = [3.0] if scheduler == "fifo" else [1.0]
        rows.append({"kind": "scheduler", "shape": cell.shape, "scheduler": scheduler, "seconds": seconds})
    return rows


def test_what_the_paper_states_stands_beside_its_cell():
    config = paper.get_config()
    rows = made_up_rows(config)
    speeds = {line[:4]: line[4:] for line in speed_grid(config, rows).rows}
    even = "2.00 [2.00, 2.00]"
    assert speeds["switch_base_128", "16", "32", "`se_moe`"] == (even, even, "5.86")
    assert speeds["switch_base_128", "8", "32", "`se_moe`"] == (even, even, "-")
    assert speeds["mixtral_8x7b", "4", "16", "`cache_moe`"] == (even, even, "up to 1.99")
    hits = {line[:4]: line[4:] for line in hit_grid(config, rows).rows}
    assert hits["switch_base_32", "8", "16", "`cache_moe`"] == ("0.500", "0.500", "0.362")
    assert hits["switch_base_32", "4", "4", "`expertflow`"][-1] == "-"
    stated = {f"{f.value:.2f}" for f in config.speed_ups} | {f"{f.value:.3f}" for f in config.hit_rates}
    in_table = {line[-1].removeprefix("up to ") for line in speeds.values()}
    assert stated <= in_table | {line[-1] for line in hits.values()}
    assert [line[1] for line in scheduler_grid(config, rows).rows] == ["3.00"] * 3


@pytest.mark.slow
def test_a_small_run_writes_its_tables_and_a_second_one_repeats_nothing(tmp_path):
    small = [
        *("--config.sequences=8", "--config.new_tokens=1", "--config.scheduler_batch_size=4"),
        *("--config.layers=(('switch_base_32',2),)", "--config.scheduler_shapes=('switch_base_32',)"),
        "--config.scheduled=((1.0,2.0),)",
        *(f"--config.grids.{name}.shapes=('switch_base_32',)" for name in ("lru", "ring", "large")),
        *(f"--config.grids.{name}.batch_sizes=(4,)" for name in ("lru", "ring", "large")),
    ]
    command = ["--config=configs/paper.py", f"--workdir={tmp_path}", *small]
    assert cli.run_command(main, description="", argv=command) == 0
    rows = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert {row["policy"] for row in rows} == {"expertflow", "cache_moe", "se_moe"}
    assert {row["protocol"] for row in rows} == {"ours", "paper"}
    files = {name: (tmp_path / name).read_bytes() for name in ("results.jsonl", "report.md")}
    assert cli.run_command(main, description="", argv=command) == 0
    assert files == {name: (tmp_path / name).read_bytes() for name in files}


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("--config.gpu=rtx9", "rtx9"),
        ("--config.layers=(('switch_base_32',12),)", "layers"),
        ("--config.grids.lru.baselines=('lru',)", "lru"),
        ("--config.grids.lru.batch_sizes=(64,)", "two batches"),
        ("--config.scheduler=sorted", "sorted"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(override, named, capsys):
    argv = ["--config=configs/paper.py", "--dry_run", override]
    assert cli.run_command(main, description="", argv=argv) == 2
    error = capsys.readouterr().err.strip()
    assert named in error
    assert "\n" not in error
