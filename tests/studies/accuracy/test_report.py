"""The report says what its rows say: files, words, tables; the same rows give the same bytes."""

import base64
import json
import re
from html.parser import HTMLParser

import pytest
from made_up_rows import FRACTIONS, cached, made_up_study, row, write_study
from rich.console import Console

from expertflow_jax.errors import InputError
from expertflow_jax.harness.document import Bullets, Code, Grid, Heading, Paragraph, to_html, to_markdown
from expertflow_jax.harness.looks import ordered
from expertflow_jax.studies.accuracy.findings import answer, changes_accuracy, findings
from expertflow_jax.studies.accuracy.report import render_table, write_report
from expertflow_jax.studies.accuracy.tables import Comparisons, points

COMMAND = "python -m eval.study --config=configs/quickstart.py --workdir=runs/quickstart"


@pytest.fixture(scope="module")
def one_task(tmp_path_factory):
    """(rows, report.md, report.html) of one task with more cache sizes."""
    rows = made_up_study(("vqa_v2",), (0.03125, 0.0625, 0.125, 0.25, 0.375, 0.5, 0.75, 0.95))
    return rows, *write_report(write_study(tmp_path_factory.mktemp("one"), rows), command=COMMAND)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """(folder, rows, Markdown, HTML) of the made-up study."""
    folder, rows = tmp_path_factory.mktemp("study"), made_up_study()
    report, html = write_report(write_study(folder, rows), command=COMMAND)
    return folder, rows, report.read_text(), html.read_text()


def words(rows, folder) -> str:
    return to_markdown(findings(rows), folder)


class Page(HTMLParser):
    """Checks that tags close in order, and keeps the addresses that the page asks for."""

    def __init__(self, text: str):
        super().__init__()
        self.open: list[str] = []
        self.sources: list[str] = []
        self.cells: list[list[str]] = []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        if tag not in ("meta", "img"):
            self.open.append(tag)
        self.sources += [value for key, value in attrs if key in ("src", "href")]
        if tag == "tr":
            self.cells.append([])

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "td":
            self.cells[-1].append(data)


def test_files(study):
    folder, rows, markdown, html = study
    plots = sorted(path.name for path in (folder / "plots").glob("*.png"))
    assert plots == [
        f"{task}_{plot}.png" for task in ("mmbench", "vqa_v2") for plot in ("lossy", "memory", "schedulers")
    ]
    for name in plots:
        assert f"](plots/{name})" in markdown
        assert base64.b64encode((folder / "plots" / name).read_bytes()).decode() in html
    for text in (markdown, html):
        assert COMMAND in text
        assert '"batch_size": 8' in text.replace("&quot;", '"')
        assert '"jax": "0.11.2"' in text.replace("&quot;", '"')
    assert not list(folder.glob("*.partial"))
    assert (
        len(rows) == markdown.count("\n| mmbench | ") + markdown.count("\n| vqa_v2 | ") - 12 - 4
    )  # findings, evaluators


def test_html_needs_nothing_else_and_holds_every_cell(study):
    _, rows, _, html = study
    page = Page(html)
    assert all(source.startswith("data:image/png;base64,") for source in page.sources)
    assert "http" not in re.sub(r'src="data:[^"]*"', "", html)
    cells = [cells for cells in page.cells if len(cells) > 14 and cells[0] in ("mmbench", "vqa_v2")]
    assert len(cells) == len(rows)
    assert "addEventListener" in html


def test_same_rows_in_any_order_same_report(one_task, tmp_path):
    rows, *one = one_task
    two = write_report(write_study(tmp_path, rows[::-1]), command=COMMAND)
    assert [path.read_bytes() for path in one] == [path.read_bytes() for path in two]


def test_findings_in_words(study):
    _, _, markdown, _ = study
    for sentence in (
        "**56 of 56 cells** that wait for missing experts computed the same logits, bit for bit",
        "In order of arrival they changed 0 answers in all",
        "Against `on_demand`: **1.08x to 1.44x** the tokens per second (faster in every cell).",
        "Against `oracle`, which knows the routing: **0.71x to 0.86x** the tokens per second (slower in every cell).",
        "| on_demand | 1.44x | 1.39x | 1.26x | 1.08x |",
        "hit rates at cache fraction 0.5: `oracle` 0.915 > `expertflow` 0.844 > `cache_moe` 0.737 > `on_demand` 0.717.",
        "takes up to 0.86 MiB more, for its predictor",
        "it reaches **1.11x to 1.32x** that of `on_demand` and **1.07x to 1.26x** that of `cache_moe`.",
        "`greedy`: 24.8 distinct experts per batch and layer (-20.0%), 1.04x to 1.13x the tokens per second.",
        "Time is simulated",
        "which is not the same as none",
        "One model (`digit_scenes_moe`), batches of 8, one seed",
        "vqa_v2: from 128 examples in 128 independent units",
        "leaves room for up to 2.3% of others to change",
        "mmbench: from 128 examples in 34 independent units",
        "leaves room for up to 8.4% of others to change",
        "takes at least 299 units, even if no score changes",
        "mmbench 128 examples (34 independent units), vqa_v2 128 examples (128 independent units)",
        "They are not adjusted for the 124 cells shown",
    ):
        assert sentence in markdown


def test_the_first_paragraph_answers(study):
    _, rows, markdown, _ = study
    first = markdown.split("\n\n")[1]
    assert first.startswith("Keeping only a part of the experts on the device, and waiting for the others, changed no")
    assert "in **56 of 56 cells**" in first
    claimed = changes_accuracy(rows)
    assert f"Of 64 cells that accept losses, **{len(claimed)}** lose accuracy, by -" in first
    assert (
        f"for none is its absence shown; for **{64 - len(claimed)}** neither is shown: that there is no impact is"
        in first
    )
    assert "**1.08x to 1.44x** that of `on_demand` (faster in every cell)" in first
    assert "in simulated time" in first


def test_no_impact_is_said_only_where_it_is_shown(tmp_path):
    changed = {"bit_identical": False, "accuracy_delta": 0.0, "delta_ci_low": -0.005, "delta_ci_high": 0.005}
    open_cell = cached("expertflow", 0.5, miss_policy="drop", **(changed | {"p_value": 1.0, "equivalence_p": 0.3}))
    equivalent = cached("expertflow", 0.75, miss_policy="drop", **(changed | {"p_value": 1.0, "equivalence_p": 1e-3}))
    proved = cached("expertflow", 0.95, miss_policy="drop", **(changed | {"p_value": 1.0, "equivalence_p": 0.0}))
    undecided = words([row(), open_cell], tmp_path)
    assert "In **0 of 1** a difference of 1 point or more is ruled out" in undecided
    assert "no impact is not refuted, and not shown. Their 95% intervals reach from -0.5 to +0.5 points" in undecided
    assert "**none** a change in accuracy is shown, nor the absence of one" in answer([row(), open_cell]).text
    assert "for **1** a change of 1 point or more is ruled out" in answer([row(), equivalent]).text
    decided = words([row(), open_cell, equivalent, proved], tmp_path)
    assert "In **2 of 3** a difference of 1 point or more is ruled out (1 by proof" in decided
    assert "In the other 1 cell no difference is shown" in decided
    shown = words([row(), equivalent], tmp_path)
    assert "not refuted" not in shown


def test_seeds_are_said_not_to_be_pooled(tmp_path):
    one = [row(), cached("expertflow", 0.5, miss_policy="drop")]
    two = [*one, row(seed=1), cached("expertflow", 0.5, miss_policy="drop", seed=1)]
    assert "Seeds are not pooled" in words(two, tmp_path)
    assert "Seeds are not pooled" not in words(one, tmp_path)


def test_cells_that_are_not_identical_are_named(tmp_path):
    rows = [row(), cached("expertflow", 0.5, bit_identical=False, flips=2), cached("on_demand", 0.5)]
    text = words(rows, tmp_path)
    assert "**1 of 2 cells**" in text
    assert "Not identical: vqa_v2, `expertflow` / `fifo` / `wait` at 0.5." in text
    assert "they changed 2 answers in all (0 to 2 per cell of 128 examples)" in text
    assert "Noise floor of vqa_v2: unknown" in text


def test_a_slower_expertflow_is_said_to_be_slower(tmp_path):
    rows = [cached("on_demand", 0.5), cached("expertflow", 0.5, tokens_per_second=100.0)]
    assert "Against `on_demand`: **0.11x** the tokens per second (slower in every cell)." in words(rows, tmp_path)


def test_an_effect_is_claimed_only_if_all_three_conditions_hold():
    lossy = {"policy": "expertflow", "fraction": 0.5, "miss_policy": "drop"}
    effect = {"accuracy_delta": -0.1, "delta_ci_low": -0.15, "delta_ci_high": -0.05, "p_value": 0.001}
    real = cached(**lossy, **effect)
    touches_zero = cached(**lossy, seed=1, **(effect | {"delta_ci_high": 0.0}))
    p_alone_is_small = [cached(**lossy, seed=seed, **(effect | {"p_value": 0.02})) for seed in (2, 3, 4)]
    rows = [row(), real, touches_zero, *p_alone_is_small]
    assert changes_accuracy(rows) == {real.cell_id: pytest.approx(0.005)}
    noisy = row(scheduler="random", accuracy_delta=0.1)
    assert changes_accuracy([*rows, noisy]) == {}
    lossless = cached("on_demand", 0.5, **effect)
    assert lossless.cell_id not in changes_accuracy([*rows, lossless])


def test_the_noise_floor_is_said(tmp_path):
    still, moved = row(scheduler="random"), row(scheduler="random", accuracy_delta=-0.016, flips=3, logit_kl=2e-3)
    assert "changed none of 128 answers and no probability" in words([row(), still], tmp_path)
    assert "at most 3 of 128 answers, accuracy by at most 1.6 points" in words([row(), moved], tmp_path)


def test_measured_time_is_not_called_simulated(tmp_path):
    rows = [row(clock="real"), cached("on_demand", 0.5, clock="real"), cached("expertflow", 0.5, clock="real")]
    write_report(write_study(tmp_path, rows), command=COMMAND)
    text = (tmp_path / "report.md").read_text()
    assert "imulated" not in text
    assert "measured (clock `real`)" in text


@pytest.mark.parametrize(
    "rows",
    [
        [row()],
        [row(hit_rate=None, hits=0)],
        [cached("expertflow", 0.25, "greedy", "substitute")],
        [cached("on_demand", 0.5), row(model="another")],
        [row(seed=s) for s in range(3)]
        + [cached("expertflow", 0.03125, s, seed=i) for i, s in enumerate(("fifo", "greedy"))],
    ],
    ids=["resident", "no requests", "one lossy", "two models", "seeds"],
)
def test_partial_studies_have_reports(tmp_path, rows):
    check_report(rows, *write_report(write_study(tmp_path, rows), command=COMMAND))


def test_a_whole_study_has_a_report(one_task):
    check_report(*one_task)


def check_report(rows, report, html) -> None:
    Page(html.read_text())
    assert "nan" not in report.read_text()
    assert f"{len(rows)} cells" in report.read_text()


def test_nothing_finished_nothing_reported(tmp_path):
    with pytest.raises(InputError, match="no finished cell"):
        write_report(tmp_path, command=COMMAND)
    write_study(tmp_path, [row()])
    (tmp_path / "config.json").unlink()
    with pytest.raises(InputError, match=r"config\.json"):
        write_report(tmp_path, command=COMMAND)


def test_terminal_table_fits(study):
    _, rows, _, _ = study
    console = Console(width=118, record=True, file=open("/dev/null", "w"))  # noqa: SIM115 (as long as the test)
    console.print(render_table(rows))
    text = console.export_text()
    lines = text.splitlines()
    assert max(map(len, lines)) <= 118
    assert len([line for line in lines if line.strip()]) == len(rows) + 2  # no cell takes two lines
    assert "75.0 [67.0, 82.0]" in text
    assert "1.44x" in text
    assert "simulated" in text


def test_speed_ups_compare_equal_sizes():
    slow, fast = cached("on_demand", 0.5, tokens_per_second=100.0), cached("expertflow", 0.5, tokens_per_second=150.0)
    others = [cached("on_demand", 0.25), cached("on_demand", 0.5, seed=1), cached("on_demand", 0.5, task="mmbench")]
    compare = Comparisons([*others, slow, fast, row(tokens_per_second=300.0)])
    assert compare.speed_up(fast, policy="on_demand") == 1.5
    assert compare.speed_up(fast, policy="resident") == 0.5
    assert compare.speed_up(fast, policy="oracle") is None
    assert compare.speed_up(cached("expertflow", 0.75), policy="on_demand") is None


def test_speed_ups_compare_equal_budgets():
    slow = cached("on_demand", 0.5, memory_budget_bytes=10_000_000, tokens_per_second=100.0)
    fast = cached("expertflow", 0.47, memory_budget_bytes=10_000_000, tokens_per_second=150.0)
    assert fast.slots != slow.slots
    assert Comparisons([slow, fast]).speed_up(fast, policy="on_demand") == 1.5


def test_order_and_signs():
    assert ordered(["zeta", "oracle", "resident", "alpha", "oracle"]) == ["resident", "oracle", "alpha", "zeta"]
    assert [points(value) for value in (0.0, -0.0078125, 0.02)] == ["0.0", "-0.8", "+2.0"]


def test_document_escapes_what_is_not_its_own(tmp_path):
    blocks = [
        Heading(1, "a < b"),
        Paragraph("`x<y` and **strong**"),
        Bullets(["one & two"]),
        Code("<pre> ``"),
        Grid(["name", "n"], [["a|b", "-"], ["<i>", "2"]], [False, True], [["a|b", None], ["<i>", 2]]),
    ]
    page = to_html(blocks)
    Page(page)
    assert "<title>a &lt; b</title>" in page
    assert "<code>x&lt;y</code> and <strong>strong</strong>" in page
    assert 'data-none=""' in page
    assert 'data-key="2"' not in page  # sorts by what it shows
    markdown = to_markdown(blocks, tmp_path)
    assert "| a\\|b | - |" in markdown
    assert "- one & two" in markdown


def test_made_up_rows_are_as_a_study_writes_them(study):
    folder, rows, _, _ = study
    assert len(rows) == 2 * (2 + 4 * len(FRACTIONS) + 3 * len(FRACTIONS) + 8 * len(FRACTIONS))
    assert json.loads((folder / "config.json").read_text())["num_examples"] == rows[0].num_examples
