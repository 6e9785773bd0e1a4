"""Cells of different numbers of batches per block (M) stand apart in every table, sentence and plot of a report."""

import csv
import io

import pytest
from made_up_rows import cached, row, write_study

from expertflow_jax.harness.document import to_markdown
from expertflow_jax.studies.accuracy.block_plot import draw_blocks
from expertflow_jax.studies.accuracy.blocks import gains
from expertflow_jax.studies.accuracy.claims import verdicts
from expertflow_jax.studies.accuracy.findings import answer, findings
from expertflow_jax.studies.accuracy.frontier import dominated, ways
from expertflow_jax.studies.accuracy.group_report import draw_groups, group_blocks
from expertflow_jax.studies.accuracy.groups import GroupScores, to_csv
from expertflow_jax.studies.accuracy.pareto import pareto, places
from expertflow_jax.studies.accuracy.pareto_plot import draw_pareto
from expertflow_jax.studies.accuracy.performance import scheduler_effects, speed_ups
from expertflow_jax.studies.accuracy.points import points_of
from expertflow_jax.studies.accuracy.report import render_table, write_report
from expertflow_jax.studies.accuracy.tables import Comparisons, in_order, main_columns, of_least_blocks


def in_block(size, policy, fraction, *names, rate, **changes):
    """A cell whose rate and time to the first token are given."""
    values = {"tokens_per_second": rate, "first_token_seconds": 0.02 * size, "batches_per_block": size}
    values["memory_budget_bytes"] = 20_000_000 + int(1e7 * fraction) + 500_000 * size
    return cached(policy, fraction, *names, cell_id=f"{policy}{fraction}{names}{size}", **(values | changes))


@pytest.fixture
def rows():
    """Two policies at two sizes, batch by batch and in blocks of 8, with a scheduler and a lossy policy."""
    cells = [row(tokens_per_second=4000.0), row(cell_id="resident8", batches_per_block=8, tokens_per_second=4400.0)]
    for size, times in ((1, 1.0), (8, 4.0)):
        cells += [in_block(size, "cache_moe", f, rate=500 * times) for f in (0.25, 0.5)]
        cells += [in_block(size, "expertflow", f, rate=600 * times) for f in (0.25, 0.5)]
        cells.append(in_block(size, "expertflow", 0.5, "greedy", rate=660 if size == 1 else 2280))
        cells.append(in_block(size, "expertflow", 0.5, "fifo", "drop", rate=1200 * times))
    return cells


def test_cells_are_compared_at_their_own_number_of_batches(rows):
    compare = Comparisons(rows)
    alone, block = (next(r for r in rows if r.cell_id == f"expertflow0.5(){size}") for size in (1, 8))
    for cell in (alone, block):
        assert compare.speed_up(cell, policy="cache_moe") == pytest.approx(1.2)
    assert compare.speed_up(block, policy="expertflow", batches_per_block=1) == 4
    assert compare.speed_up(block, policy="resident") == 2400 / 4000  # batch by batch
    assert {v.row.batches_per_block: v.speed_up for v in verdicts(rows)} == {1: 2.0, 8: 2.0}
    for size in (1, 8):
        ratios = {other.policy: other.all_ratios for other in speed_ups(rows, size)}
        assert ratios["cache_moe"] == pytest.approx([1.2, 1.2])
    assert [(e.batches_per_block, e.speed_ups) for e in scheduler_effects(rows)] == [(1, [1.1]), (8, [0.95])]


def test_nothing_of_different_blocks_is_averaged(rows):
    points = points_of(rows)
    assert len(points) == len(rows)
    assert all(len(point.rows) == 1 for point in points)
    assert {r.batches_per_block for r in of_least_blocks(rows)} == {1}
    lossy = ways(rows)
    assert [len(way.cells) for way in lossy] == [1, 1]
    assert not any(dominated(way, lossy) for way in lossy)


def test_only_blocks_are_left_where_nothing_runs_batch_by_batch(rows):
    blocks = [r for r in rows if r.batches_per_block == 8 or r.policy == "resident"]
    assert {(r.policy, r.batches_per_block) for r in of_least_blocks(blocks)} == {
        ("resident", 1),
        ("cache_moe", 8),
        ("expertflow", 8),
    }
    assert not gains(blocks)
    assert "batches is **1.20x** that of `cache_moe`" in answer(blocks).text


def test_what_blocks_buy_and_cost_is_said(rows, tmp_path):
    text = to_markdown(findings(rows), tmp_path)
    for sentence in (
        "`cache_moe` in blocks of 8 batches: **4.00x** the tokens per second",
        "`expertflow` in blocks of 8 batches: **4.00x** the tokens per second",
        "0.60x the speed of the all-resident run",
        "the first token comes after 160 ms instead of 20 (**8.00x** as long), and up to 3.34 MiB more",
        "in 4 of 4 cells all experts, batch by batch, would fit into as much (19.2 MiB)",
        "In blocks of 8 `greedy` **costs more than it saves** (0.95x; single batches: 1.10x)",
        "| expertflow | fifo | 8 | 0.5 | 4.00x | 0.60x |",
        "`expertflow` in order of arrival in blocks of 8 batches, waiting for misses, at equal cache size",
    ):
        assert sentence in text
    first = answer(rows).text
    assert "Blocks of 8 batches make `expertflow` **4.00x** as fast as single batches" in first
    assert "On vqa_v2 the all-resident run is right in 75.0% [67.0, 82.0]; that waiting" in first
    assert "proved, bit for bit, in 10 of 10 cells (cache fractions 0.25 to 0.5)" in first
    assert "the speed of `expertflow` is **1.20x** that of `cache_moe`" in first


def test_tables_have_a_column_only_where_it_says_something(rows, tmp_path):
    assert "M" in [column.title for column in main_columns(rows)]
    assert "M" not in [column.title for column in main_columns(of_least_blocks(rows))]
    sizes = [r.batches_per_block for r in in_order(rows) if (r.policy, r.scheduler) == ("cache_moe", "fifo")]
    assert sizes == [1, 1, 8, 8]
    assert render_table(rows).columns[4].header == "M"
    report, html = write_report(write_study(tmp_path, rows))
    assert "in blocks of 1, 8 (M)" in report.read_text()
    assert "batches_per_block" not in html.read_text().partition("<details>")[0]  # it is the column M
    assert (tmp_path / "plots" / "vqa_v2_blocks.png").exists()
    tables = sorted(path.name for path in (tmp_path / "tables").iterdir())
    assert [name for name in tables if "all-cells" in name] == tables[-2:]
    assert any("what-do-blocks-of-batches-buy" in name for name in tables)


def test_the_plot_of_blocks_has_a_line_for_each(rows):
    figure = draw_blocks(rows)
    drawn = [line for line in figure.axes[0].get_lines() if len(line.get_xdata()) == 2 and line.get_marker() != "None"]
    assert sorted(line.get_linestyle() for line in drawn) == ["-", "-", "--", "--"]
    assert draw_blocks(of_least_blocks(rows)) is None


def test_the_front_has_what_nothing_of_its_size_beats(rows):
    """At half of the experts: blocks of 8, lossless and lossy; single batches are slower and no better."""
    [place] = places(rows)
    assert (place.task, place.size) == ("vqa_v2", "0.5")
    assert [(p.row.losses, p.row.batches_per_block) for p in place.front] == [("wait", 8), ("drop", 8)]
    text = to_markdown(pareto(rows))
    assert "In **0 of 1 place** the fastest of all is lossless" in text
    assert "| 0.5 | vqa_v2 | expertflow | fifo | wait | 8 | 2400 | 75.0 [67.0, 82.0] | same bits |" in text
    assert [text.get_text() for text in draw_pareto(rows).axes[0].texts] == ["M=8", "M=8"]
    assert not pareto(of_least_blocks(rows))  # only controls lose, and nothing is in blocks


def test_groups_keep_blocks_apart_and_count_changed_answers(rows):
    groups = {
        r.cell_id: GroupScores(
            r.cell_id,
            {"accuracy": 0.5, "kind/a": 0.4 + 0.01 * r.batches_per_block},
            {"accuracy": 0.5, "kind/a": 0.5},
            {"kind/a": 10},
            {"kind/a": 0 if r.lossless else r.batches_per_block},
        )
        for r in rows
    }
    text = to_markdown(group_blocks(rows, groups))
    assert "| kind/a | 1 | 10 | 50.0 | -9.0 | -9.0 | -9.0 | 10.0 | 10.0 | 10.0 |" in text
    assert "| kind/a | 8 | 10 | 50.0 | -2.0 | -2.0 | -2.0 | 80.0 | 80.0 | 80.0 |" in text
    assert len(draw_groups(rows, groups).axes[0].get_yticks()) == 2
    lines = list(csv.DictReader(io.StringIO(to_csv(rows, groups))))
    lossy = [line for line in lines if line["miss_policy"] == "drop" and line["group"] == "kind/a"]
    assert [(line["batches_per_block"], line["flips"]) for line in lossy] == [("1", "1"), ("8", "8")]
