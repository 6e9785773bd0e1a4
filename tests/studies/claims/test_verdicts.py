"""Claims: speed-ups with intervals, verdicts by criteria, what a system does not do is seen, the command resumes."""

import dataclasses
import json

import ml_collections
import numpy as np
import pytest

from configs import claims
from eval.claims import main
from expertflow_jax import cli
from expertflow_jax.offload.link import LinkSpec
from expertflow_jax.offload.store import ExpertSizes
from expertflow_jax.offload.variant import Variant, new_engine
from expertflow_jax.simulation.costs import ComputeCosts, Line
from expertflow_jax.simulation.event_log import record
from expertflow_jax.simulation.machines import Machine
from expertflow_jax.simulation.synthetic import noisy_horizons, synthetic_steps
from expertflow_jax.studies.claims.mechanisms import MECHANISMS, Run
from expertflow_jax.studies.claims.speed import Ratio, gated, play, speed_up
from expertflow_jax.studies.claims.verdicts import SpeedUp, judge_mechanism, judge_speed

NOTHING = Line(0.0, 0.0)
COSTS = ComputeCosts(Line(1e-4, 0), Line(5e-5, 1e-6), 1e-5, NOTHING, NOTHING, Line(1e-3, 0), route=NOTHING)
LAYERS, EXPERTS = 4, 16
MACHINE = Machine("small", COSTS, LinkSpec(0.4, 2), 36864)


@pytest.fixture(scope="module")
def steps():
    sizes = {"num_layers": LAYERS, "num_experts": EXPERTS, "top_k": 2, "batch_size": 2}
    made = noisy_horizons(synthetic_steps(2, batches=4, prompt_tokens=4, decode_steps=5, **sizes), 3, skill=2.2)
    return [dataclasses.replace(step, begins=n % 6 == 0) for n, step in enumerate(made)]


def measured(policy, mechanism, steps, slots=2 * EXPERTS):
    with new_engine(ExpertSizes(LAYERS, EXPERTS, 36864), Variant.of(policy), slots, MACHINE.link) as engine:
        log = record(engine, steps, COSTS)
    return MECHANISMS[mechanism](Run(log, steps, LAYERS, slots))


REPLAYED = [name for name, claim in claims.get_config().mechanisms.items() if claim.mechanism in MECHANISMS]


@pytest.mark.parametrize("name", REPLAYED)
def test_a_system_has_the_mechanism_that_is_claimed(name, steps):
    claim = claims.get_config().mechanisms[name]
    assert judge_mechanism(claim, measured(claim.policy, claim.mechanism, steps)).verdict == "verified"


@pytest.mark.parametrize(
    ("name", "other"),
    [("ring", "on_demand"), ("lru", "on_demand"), ("lru", "lfu"), ("path", "cache_moe"), ("correction", "cache_moe")],
)
def test_another_system_has_not(name, other, steps):
    claim = claims.get_config().mechanisms[name]
    assert judge_mechanism(claim, measured(other, claim.mechanism, steps)).verdict == "refuted"


def test_victims_by_age_are_not_the_least_likely(steps):
    by_forecast, by_age = (measured(policy, "workflow", steps) for policy in ("expertflow", "on_demand"))
    assert by_age["victims less likely than most"] < by_forecast["victims less likely than most"]


def test_a_speed_up_is_of_paired_batches():
    ratio = speed_up([2.0, 4.0, 6.0], [1.0, 2.0, 3.0])
    assert (ratio.value, ratio.low, ratio.high) == pytest.approx((2, 2, 2))
    ratio = speed_up([2.0, 2.0, 8.0], [1.0, 1.0, 2.0])
    assert ratio.value == pytest.approx(16 ** (1 / 3))
    assert ratio.low < ratio.value < ratio.high


@pytest.mark.parametrize(
    ("intervals", "verdict"),
    [
        ([(2.0, 3.0), (1.9, 2.0)], "verified"),
        ([(2.0, 3.0), (1.7, 2.0)], "not decidable here"),
        ([(2.0, 3.0), (1.2, 1.8)], "refuted"),
    ],
)
def test_a_verdict_follows_from_the_intervals(intervals, verdict):
    claim = ml_collections.ConfigDict({"number": 1, "text": "faster", "least": 1.85, "most": 5.86})
    sure = Ratio(9.0, 9.0, 9.0)
    pairs = [
        SpeedUp("shape", 4, 8, "cache_moe", {"ours": Ratio((low + high) / 2, low, high), "paper": sure})
        for low, high in intervals
    ]
    judged = judge_speed(claim, pairs)
    assert (judged.verdict, judged.under_paper) == (verdict, "verified")


def test_the_papers_protocol_flatters(steps):
    """The path is known and free, and what is late is a hit: more hits, and less time than the decode steps take."""
    ours, paper = (play(MACHINE, 24, "expertflow", steps, protocol) for protocol in ("ours", "paper"))
    assert paper.hit_rate > ours.hit_rate
    assert len(paper.seconds) == len(ours.seconds) == 4
    assert sum(paper.seconds) < sum(ours.seconds)


def test_a_pregate_that_decides_is_never_wrong(steps):
    step = gated(steps[0])
    for probs_NE, rows_E in zip(step.hidden_probs, step.rows, strict=True):
        assert (probs_NE.sum(0) == rows_E).all()
    log_steps = [gated(step) for step in steps]
    with new_engine(ExpertSizes(LAYERS, EXPERTS, 64), Variant.of("pregated_forecast"), 2 * EXPERTS, "direct") as engine:
        log = record(engine, log_steps, COSTS)
    for ask in log.asks:
        if ask.layer:
            assert {ask.layer * EXPERTS + expert for expert in ask.experts} <= ask.held


@pytest.mark.slow
def test_the_command_judges_eight_claims_and_a_second_run_repeats_nothing(tmp_path):
    shapes = "config.speed.{}.shapes={}"
    small = [
        *("--config.sequences=8", "--config.new_tokens=1", "--config.batch_sizes=(4,)"),
        "--" + shapes.format("switch", '(("switch_base_8",2),)'),
        "--" + shapes.format("large", '(("mixtral_8x7b",2),)'),
    ]
    command = ["--config=configs/claims.py", f"--workdir={tmp_path}", *small]
    assert cli.run_command(main, description="", argv=command) == 0
    verdicts = json.loads((tmp_path / "claims.json").read_text())
    assert [verdict["number"] for verdict in verdicts] == list(range(1, 9))
    assert {verdict["verdict"] for verdict in verdicts} <= {"verified", "refuted", "not decidable here"}
    files = {name: (tmp_path / name).read_bytes() for name in ("results.jsonl", "claims.json", "claims.md")}
    assert cli.run_command(main, description="", argv=command) == 0
    assert files == {name: (tmp_path / name).read_bytes() for name in files}
    assert np.all(
        [row["hit_rate"] <= 1 for row in map(json.loads, files["results.jsonl"].splitlines()) if "slots" in row]
    )
