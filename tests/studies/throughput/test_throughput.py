"""The throughput command on a tiny config, what it computes by, and what it refuses. Nothing here asserts on time."""

import json

import numpy as np
import pytest

from eval import throughput
from expertflow_jax import cli
from expertflow_jax.errors import InputError
from expertflow_jax.harness.timeline import overlap, with_compute
from expertflow_jax.offload.link import LinkSpec
from expertflow_jax.simulation.gpus import GPUS, LayerSize, scaled_link, transfer_ratio
from expertflow_jax.simulation.limits import least_transfers, limit_seconds


def run(*arguments):
    command = ["--config=tests/studies/throughput/tiny.py", *arguments]
    return cli.run_command(throughput.main, description=throughput.__doc__, argv=command)


VARIANTS = ["resident", "cache_moe", "expertflow", "expertflow(truth)"]


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """Of a finished run."""
    folder = tmp_path_factory.mktemp("throughput") / "run"
    assert run(f"--workdir={folder}") == 0
    return folder


@pytest.mark.slow
def test_a_run_writes_rows_trace_and_report(workdir):
    rows = [json.loads(line) for line in (workdir / "results.jsonl").read_text().splitlines()]
    assert [row["variant"] for row in rows] == VARIANTS * 2 + ["resident", "cache_moe"] * 4
    for row in rows:
        assert row["best_order_bytes"] <= row["least_bytes"]
        assert row["tokens_per_second_min"] <= row["tokens_per_second"] <= row["tokens_per_second_max"]
        assert 0 < row["peak_device_bytes"] <= row["memory_budget_bytes"]
        assert row["new_compilations"] == 0
        if row["policy"] != "resident":
            assert row["least_bytes"] <= row["bytes_transferred"]
            link = LinkSpec(row["gigabytes_per_second"], row["latency_us"])
            assert row["wall_seconds"] >= link.seconds_on_link(row["least_bytes"])
    trace = json.loads((workdir / "trace.json").read_text())["traceEvents"]
    assert {"compute", "link"} <= {event.get("cat") for event in trace}
    summary = json.loads((workdir / "throughput.json").read_text())
    assert set(summary["policies"]) == set(VARIANTS)
    assert {"median", "min", "max"} == set(summary["policies"]["expertflow"]["tokens_per_second"])
    assert (workdir / "plots" / "timeline.png").stat().st_size
    report = (workdir / "report.md").read_text()
    for part in ("Timeline", "Targets", "Blocks of batches", "Least memory", "Decode"):
        assert part in report


@pytest.mark.slow
def test_a_block_moves_less_for_the_same_tokens(workdir):
    rows = [json.loads(line) for line in (workdir / "results.jsonl").read_text().splitlines()]
    for phase in ("prefill", "decode"):
        pairs = [row for row in rows if row["window"] == 2 and (row["phase"], row["variant"]) == (phase, "cache_moe")]
        alone, block = sorted(pairs, key=lambda row: row["batches_per_block"])
        assert block["bytes_transferred"] <= alone["bytes_transferred"]
        assert block["tokens"] == alone["tokens"]
        assert block["steps"] * 2 == alone["steps"]


@pytest.mark.slow
def test_a_run_goes_on_after_a_kill(workdir, capsys):
    results = workdir / "results.jsonl"
    lines = results.read_text().splitlines()
    results.write_text("\n".join(lines[:4]) + "\n" + lines[4][:20])  # killed within the second cell
    assert run(f"--workdir={workdir}") == 0
    again = results.read_text().splitlines()
    assert again[:4] == lines[:4]
    assert len(again) == len(lines)
    assert run(f"--workdir={workdir}", "--config.repeats=3") == 2
    assert "another config" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("--config.link=scaled(rtx9)", "rtx9"),
        ("--config.repeats=0", "repeats"),
        ("--config.minutes=0.0", "minutes"),
        ("--config.baseline_models=('gpt',)", "gpt"),
        ("--config.grids.one.variants=('lru',)", "lru"),
        ("--config.grids.one.batch_sizes=(7,)", "windows"),
        ("--config.grids.one.cache_fractions=(1.5,)", "1.5"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(override, named, capsys):
    assert run("--dry_run", override) == 2
    error = capsys.readouterr().err.strip()
    assert named in error
    assert "\n" not in error


def test_the_scaled_link_keeps_the_gpus_ratio():
    layer = LayerSize(4096, 14336, 8, 2, 32, 8, 128)
    ratio = transfer_ratio(GPUS["rtx4090"], layer)
    link = scaled_link("scaled(rtx4090)", layer, expert_bytes=10**6, seconds_here=2e-3)
    assert link.seconds_on_link(10**6) / 2e-3 == pytest.approx(ratio)
    with pytest.raises(InputError, match="rtx9"):
        scaled_link("scaled(rtx9)", layer, 10**6, 1.0)


def test_the_least_number_of_transfers_is_that_of_the_best_of_all_schedules():
    rng = np.random.default_rng(0)
    for _ in range(20):
        needed = rng.random((4, 2, 3)) < 0.4
        steps = [frozenset(np.flatnonzero(row) + 3 * layer) for step in needed for layer, row in enumerate(step)]
        assert least_transfers(needed, 2, (0, 3)) == _by_search(steps, 2, frozenset((0, 3)))


def _by_search(steps, slots, inside):
    """All orders within a layer-step and all victims."""
    states = {(inside, frozenset()): 0}
    for asked in steps:
        states = {(held, asked): cost for (held, _), cost in states.items()}
        for _ in range(len(asked)):
            found = {}
            for (held, left), cost in states.items():
                for key in left:
                    if key in held:
                        options = [(held, cost)]
                    elif len(held) < slots:
                        options = [(held | {key}, cost + 1)]
                    else:
                        options = [(held - {victim} | {key}, cost + 1) for victim in held]
                    for after, price in options:
                        state = (after, left - {key})
                        found[state] = min(price, found.get(state, price))
            states = found
        cheapest = {}
        for (held, _), cost in states.items():
            cheapest[(held, frozenset())] = min(cost, cheapest.get((held, frozenset()), cost))
        states = cheapest
    return min(states.values())


def test_the_limit_is_the_greater_of_compute_and_link():
    link = LinkSpec(1.0, 10.0)
    assert limit_seconds(2.0, 10**9, link) == 2.0
    assert limit_seconds(0.5, 10**9, link) == 1.0
    assert limit_seconds(0.5, 10**9, LinkSpec()) == 0.5


def test_overlap_is_the_share_of_link_time_without_a_stall():
    events = [("link", "prefetch layer 0 expert 1", 1.0, 3.0), ("stall", "stall", 2.5, 3.0)]
    assert overlap(events) == pytest.approx(0.75)
    assert overlap(events[1:]) is None
    assert [event[2:] for event in with_compute(events, 0.0, 4.0) if event[0] == "compute"] == [(0.0, 2.5), (3.0, 4.0)]
