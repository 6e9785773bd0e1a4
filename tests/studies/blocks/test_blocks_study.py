"""The study of blocks: a run of two batches, what its rows must satisfy, and what the command refuses."""

import json

import numpy as np
import pytest

from eval import simulate
from expertflow_jax import cli
from expertflow_jax.simulation.limits import least_transfers, super_steps
from expertflow_jax.studies.blocks.comparison import Target, places
from expertflow_jax.studies.blocks.report import target_grid
from expertflow_jax.workloads.recorded import longer_prompts


def run(*arguments):
    command = ["--config=tests/studies/blocks/tiny_blocks.py", *arguments]
    return cli.run_command(simulate.main, description=simulate.__doc__, argv=command)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """Of a finished run."""
    folder = tmp_path_factory.mktemp("blocks") / "run"
    assert run(f"--workdir={folder}") == 0
    return folder


def rows_of(workdir):
    return [json.loads(line) for line in (workdir / "results.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_no_run_passes_its_limits(workdir):
    rows = rows_of(workdir)
    assert len(rows) == 12  # 4 GiB hold neither a block nor a batch
    for row in rows:
        assert row["fraction_of_limit"] <= 1 + 1e-9
        assert row["fraction_of_resident"] <= 1 + 1e-9
        assert row["limit_tokens_per_second"] <= row["best_order_tokens_per_second"]
        assert row["best_order_bytes"] <= row["least_bytes"] <= row["bytes_transferred"]
        assert row["hits"] + row["late"] + row["misses"] > 0


@pytest.mark.slow
def test_a_block_moves_less_and_its_caches_take_slots(workdir):
    for place in places(rows_of(workdir)):
        for variant in ("cache_moe", "expertflow"):
            alone, block = place.row(variant, 1), place.row(variant, 2)
            assert block["bytes_transferred"] < alone["bytes_transferred"]
            assert block["tokens_per_second"] > alone["tokens_per_second"]
            assert block["tokens"] == alone["tokens"]
            if alone["room"] == "24GiB":
                assert block["slots"] <= alone["slots"]
            else:
                assert block["memory_budget_bytes"] > alone["memory_budget_bytes"]


@pytest.mark.slow
def test_the_report_has_its_tables_and_names_what_did_not_fit(workdir):
    report = (workdir / "report.md").read_text()
    for title in ("Speed over batches per block", "Of resident speed", "Of the limit", "Time to the first token"):
        assert title in report
    assert "does not fit into the memory: mixtral_8x7b 4GiB" in report
    assert list((workdir / "plots").glob("*.png"))


@pytest.mark.slow
def test_finished_cells_are_kept(workdir):
    results = workdir / "results.jsonl"
    lines = results.read_text().splitlines()
    results.write_text("\n".join(lines[:-1]) + "\n" + lines[-1][:20])
    assert run(f"--workdir={workdir}") == 0
    assert results.read_text().splitlines() == lines


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("--config.gpu=rtx9", "rtx9"),
        ("--config.grids.slots.models=('gpt',)", "gpt"),
        ("--config.grids.slots.cache_fractions=(0.0,)", "cache_fractions"),
        ("--config.grids.memory.memory_budgets=('many',)", "many"),
        ("--config.grids.slots.batches_per_block=(0,)", "batches_per_block"),
        ("--config.grids.slots.new_tokens=(2,)", "new_tokens"),
        ("--config.grids.slots.sequences=(1,)", "sequences"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(override, named, capsys):
    assert run("--dry_run", override) == 2
    error = capsys.readouterr().err.strip()
    assert named in error
    assert "\n" not in error


def test_a_block_asks_for_the_union_and_the_best_order_moves_least():
    needed_NxLxE = np.random.default_rng(0).random((12, 2, 5)) < 0.4  # four batches of three steps
    pairs = super_steps(needed_NxLxE, 4, 2)
    assert pairs.shape == (6, 2, 5)
    np.testing.assert_array_equal(pairs[1], needed_NxLxE[1] | needed_NxLxE[4])
    np.testing.assert_array_equal(pairs[3], needed_NxLxE[6] | needed_NxLxE[9])
    np.testing.assert_array_equal(super_steps(needed_NxLxE, 4, 1), needed_NxLxE)
    transfers = [least_transfers(super_steps(needed_NxLxE, 4, size), 3) for size in (1, 2, 4)]
    assert transfers == sorted(transfers, reverse=True)
    assert transfers[0] > transfers[-1]


def test_longer_prompts_end_with_their_own():
    recorded = np.arange(4) < np.array([2, 3, 4])[:, None]
    np.testing.assert_array_equal(longer_prompts(recorded, np.array([0]), 2), [[1, 1, 0, 0], [0] * 4, [0] * 4])
    np.testing.assert_array_equal(
        longer_prompts(recorded, np.array([2]), 11), [[1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 2, 2]]
    )
    assert longer_prompts(recorded, np.array([0, 1]), 100).sum() == 200


def test_a_target_is_met_or_not_by_its_own_place_alone():
    common = {"window": 4, "new_tokens": 0, "prompt_tokens": 0, "variant": "cache_moe", "batches_per_block": 1}
    rows = [
        {**common, "model": "a", "room": "@0.25", "tokens_per_second": 2.0},
        {**common, "model": "a", "room": "@0.5", "tokens_per_second": 4.0},
    ]
    target = Target("speed", 3.0, ("a", "@0.5", 0, 0), lambda place: place.rows[0]["tokens_per_second"])
    assert target.measured(rows) == [("a @0.5, recorded prompts, 0 decode steps", 4.0)]
    assert target_grid(rows).rows == []
