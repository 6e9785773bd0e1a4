"""Ways to lose accuracy for speed: the fastest within the margin, the dominated ones, and the report's sentences."""

from made_up_rows import cached, row

from expertflow_jax.harness.document import Bullets, Grid, Paragraph
from expertflow_jax.studies.accuracy.frontier import dominated, fastest_within, frontier, ways
from expertflow_jax.studies.accuracy.frontier_plot import draw_frontier


def lossy(miss_policy, speed, delta, task="vqa_v2", policy="cache_moe", fraction=0.5, **changes):
    waiting = cached(policy, fraction)
    return cached(
        policy,
        fraction,
        "fifo",
        miss_policy,
        task=task,
        tokens_per_second=speed * waiting.tokens_per_second,
        accuracy_delta=delta,
        delta_ci_low=delta - 0.01,
        delta_ci_high=delta + 0.01,
        **({"equivalence_p": 0.5, "p_value": 1.0} | changes),
    )


def study(*cells):
    waiting = [cached("cache_moe", 0.5, task=task) for task in ("mmbench", "vqa_v2")]
    return [row(task="mmbench"), row(task="vqa_v2"), *waiting, *cells]


def both(miss_policy, speeds, deltas, **changes):
    tasks = ("mmbench", "vqa_v2")
    return [lossy(miss_policy, s, d, t, **changes) for s, d, t in zip(speeds, deltas, tasks, strict=True)]


CAREFUL = both("drop_weak(below=1)", (1.2, 1.3), (0.0, -0.004))
BOLD = both("drop_weak(below=2)", (1.9, 2.0), (0.0, -0.02))
SLOWER = both("cache_prior(strength=0.1)", (1.1, 1.2), (-0.002, -0.004))
NAIVE = both("drop", (2.5, 2.6), (-0.3, -0.4), p_value=1e-6)


def test_the_fastest_way_within_the_margin_holds_on_every_task():
    found = ways(study(*CAREFUL, *BOLD, *SLOWER, *NAIVE))
    assert [way.row.losses for way in found if way.within] == ["drop_weak(below=1)", "cache_prior(strength=0.1)"]
    best = fastest_within(found)
    assert best is not None
    assert best.row.losses == "drop_weak(below=1)"
    assert fastest_within([way for way in found if way.family == "drop"]) is None


def test_dominated_is_no_faster_and_no_better_anywhere():
    found = {way.row.losses: way for way in ways(study(*CAREFUL, *BOLD, *SLOWER, *NAIVE))}
    beaten = [name for name, way in found.items() if dominated(way, list(found.values()))]
    assert beaten == ["cache_prior(strength=0.1)"]
    waiting = [cached("cache_moe", 0.25, task=task) for task in ("mmbench", "vqa_v2")]
    smaller = both("cache_prior", (1.0, 1.0), (-0.5, -0.5), fraction=0.25)
    elsewhere = ways([*study(*CAREFUL), *waiting, *smaller])
    assert len(elsewhere) == 2
    assert not any(dominated(way, elsewhere) for way in elsewhere)


def test_sentences_say_what_is_shown_and_what_is_only_not_refuted():
    proved = both("drop_light(mass=0.01)", (1.05, 1.06), (0.0, 0.0), equivalence_p=1e-9)
    blocks = frontier(study(*CAREFUL, *BOLD, *NAIVE, *proved))
    (bullets,) = [block for block in blocks if isinstance(block, Bullets)]
    sentences = {text.split("`")[1]: text for text in bullets.points}
    assert "**1.20x to 1.30x** as `drop_weak(below=1)`" in sentences["drop_weak"]
    assert "equivalence not refuted, not shown" in sentences["drop_weak"]
    assert "equivalence shown in 2 of 2" in sentences["drop_light"]
    assert sentences["drop"] == "`drop` (control): at 0.5 nothing within the margin."
    (grid,) = [block for block in blocks if isinstance(block, Grid)]
    assert len(grid.rows) == 4
    assert all(len(line) == len(grid.titles) == len(grid.numeric) for line in grid.rows)


def test_a_loss_is_a_share_of_what_seeing_is_worth():
    blind = row(task="vqa_v2_blind", accuracy=0.35)
    texts = [block.text for block in frontier([*study(*CAREFUL), blind]) if isinstance(block, Paragraph)]
    assert any("35.0% without seeing, 75.0% with" in text and "is 1.0% of" in text for text in texts)


def test_a_study_without_careful_ways_has_no_frontier():
    rows = study(*NAIVE)
    assert frontier(rows) == []
    assert draw_frontier([r for r in rows if r.task == "vqa_v2"]) is None


def test_the_plot_has_a_panel_per_size():
    rows = [r for r in study(*CAREFUL, *BOLD, *NAIVE) if r.task == "vqa_v2"]
    figure = draw_frontier(rows)
    assert figure is not None
    assert [ax.get_title() for ax in figure.axes] == ["cache fraction 0.5"]
