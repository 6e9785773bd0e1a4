"""A policy, miss policy, scheduler and task that stand in a file outside the package run in a study by their names."""

import json
from pathlib import Path

import pytest

from eval import study
from expertflow_jax import cli
from expertflow_jax.scheduling import Scheduler, make_scheduler
from expertflow_jax.tasks.registry import make_task

GOLDEN = Path(__file__).parents[2] / "goldens" / "models" / "olmoe_clip"
OUTSIDE = '''
import numpy as np

from expertflow_jax.offload.misses import MissPolicy
from expertflow_jax.offload.policies.base import CachePolicy
from expertflow_jax.scheduling import Scheduler
from expertflow_jax.tasks.base import Example


class Plain(CachePolicy):
    """What the base class does: one shared cache, the least recently used goes."""

    name = "plain"


class Patient(MissPolicy):
    """Waits, as `wait` does."""

    name = "patient"
    lossless = True

    def resolve(self, expert_ids, weights, router_probs, usable):
        return expert_ids, weights


class LastFirst(Scheduler):
    """The youngest sequences first."""

    name = "last_first"
    uses_forecast = False

    def _form(self, signatures, sizes, rng):
        ends = np.cumsum(sizes)
        return [np.arange(end - size, end) for size, end in zip(sizes, ends)][::-1]


class Counting:
    """Says what follows some tokens; any answer will do."""

    name = "counting"
    circular = False
    teacher_forced = False

    def __init__(self, data_dir, split):
        self.split = split

    def examples(self, limit=None):
        prompts = [tuple(range(5 + i, 10 + i)) for i in range(8)]
        rows = [Example(str(i), [], None, "7", "all", str(i), 2, None, ids) for i, ids in enumerate(prompts)]
        return rows[:limit]

    def score(self, example, prediction):
        return float(example.target in prediction)

    def aggregate(self, examples, predictions):
        return {"accuracy": float(np.mean([self.score(e, p) for e, p in zip(examples, predictions)]))}
'''


@pytest.fixture
def outside(tmp_path, monkeypatch) -> Path:
    (tmp_path / "outside_names.py").write_text(OUTSIDE)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


@pytest.mark.slow
def test_a_study_runs_what_stands_outside_the_package(outside):
    arguments = (
        "--config=configs/text_study.py",
        f"--config.model={GOLDEN}",
        "--config.predictor=",
        "--config.clock=real",
        "--config.link=direct",
        "--config.tasks=('outside_names:Counting',)",
        "--config.num_examples=8",
        "--config.batch_size=4",
        "--config.window=8",
        "--config.bootstrap_samples=50",
        "--config.grids.lossless.policies=('outside_names:Plain','expertflow(truth)')",
        "--config.grids.lossless.schedulers=('outside_names:LastFirst',)",
        "--config.grids.lossless.miss_policies=('outside_names:Patient',)",
        "--config.grids.lossless.cache_fractions=(0.5,)",
        "--config.grids.lossy.policies=()",
        f"--workdir={outside / 'run'}",
    )
    assert cli.run_command(study.main, description="", argv=list(arguments)) == 0
    rows = [json.loads(line) for line in (outside / "run" / "results.jsonl").read_text().splitlines()]
    run = {row["policy"]: row for row in rows if row["policy"] != "resident"}
    assert set(run) == {"outside_names:Plain", "expertflow(truth)"}
    for row in run.values():
        assert row["task"] == "outside_names:Counting"
        assert row["scheduler"] == "outside_names:LastFirst"
        assert row["miss_policy"] == "outside_names:Patient"
        assert row["lossless"]
        assert row["bit_identical"]
    assert run["outside_names:Plain"]["forecast"] == "none"
    assert run["outside_names:Plain"]["misses"] > 0
    assert run["expertflow(truth)"]["forecast"] == "truth"
    assert run["expertflow(truth)"]["corrections"] == 0  # nothing is mispredicted


def test_classes_and_objects_are_taken_where_names_are(outside):
    import outside_names

    by_class = make_scheduler(outside_names.LastFirst, batch_size=2)
    assert isinstance(by_class, Scheduler)
    assert make_scheduler(by_class, batch_size=4) is by_class
    task = make_task("outside_names:Counting", outside, "val", image_first=True)
    assert make_task(task, outside, "val") is task


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("--config.grids.lossless.schedulers=('no_such_module:Mine',)", "no module 'no_such_module'"),
        ("--config.grids.lossless.policies=('outside_names:Plane',)", "did you mean 'Plain'"),
        ("--config.grids.lossless.policies=('outside_names:LastFirst',)", "not a CachePolicy"),
        ("--config.tasks=('outside_names:Patient',)", "no method 'examples'"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(outside, capsys, override, words):
    arguments = ["--config=configs/text_study.py", "--config.predictor=", override, f"--workdir={outside / 'run'}"]
    assert cli.run_command(study.main, description="", argv=arguments) == 2
    message = capsys.readouterr().err
    assert words in message
    assert message.count("\n") == 1
