"""`train.predictor` from the command line: dry run, the whole way at toy size, bad input."""

import json

import pytest

from expertflow_jax import cli
from expertflow_jax.predictor import load_predictor
from expertflow_jax.predictor.examples import benchmark_examples
from expertflow_jax.tasks.base import question_of
from expertflow_jax.tasks.digit_scenes.files import write_benchmark
from train import predictor as command

CONFIG = "--config=configs/digit_scenes_predictor.py"
SMALL = [
    "--config.digit_scenes.train=24",
    "--config.digit_scenes.val=24",
    "--config.sequences.train.vqa_v2=8",
    "--config.sequences.train.mmbench=0",
    "--config.sequences.calibration.vqa_v2=8",
    "--config.sequences.calibration.mmbench=0",
    "--config.sequences.held_out.vqa_v2=8",
    "--config.sequences.held_out.mmbench=0",
    "--config.sequences.out_of_distribution=8",
    "--config.record_batch_size=8",
    "--config.predictor.width=16",
    "--config.predictor.depth=1",
    "--config.predictor.hidden=16",
    "--config.training.steps=4",
    "--config.training.batch_size=8",
]


def run(*arguments: str) -> int:
    return cli.run_command(command.main, description="", argv=[CONFIG, *arguments])


def test_dry_run_prints_the_plan(model_dir, tmp_path, capsys):
    assert run(f"--config.model={model_dir}", f"--workdir={tmp_path / 'new'}", "--dry_run") == 0
    shown = capsys.readouterr().out
    assert "2 MoE layers of 8 experts" in shown
    assert "parameters" in shown
    assert not (tmp_path / "new").exists()


@pytest.mark.slow
def test_the_whole_way_and_a_rerun(model_dir, tmp_path, capsys):
    arguments = [f"--config.model={model_dir}", f"--workdir={tmp_path}", *SMALL]
    assert run(*arguments) == 0
    export = tmp_path / "export"
    report = json.loads((tmp_path / "report.json").read_text())
    assert set(report) == {"held_out", "out_of_distribution"}
    assert report["held_out"]["sequences"] == 8
    assert set(report["held_out"]["token"]["all"]) == {"predictor", "popularity", "speculative"}
    assert (tmp_path / "recall.png").stat().st_size > 10_000
    assert "| layer | method |" in (tmp_path / "report.md").read_text()
    card = (export / "README.md").read_text()
    fingerprint = load_predictor(export).model_fingerprint
    assert fingerprint in card
    assert "python -m train.predictor --config=configs/digit_scenes_predictor.py" in card
    weights = (export / "predictor.safetensors").read_bytes()
    shards = {path: path.stat().st_mtime_ns for path in tmp_path.glob("traces/*/*")}
    assert run(*arguments) == 0
    assert (export / "predictor.safetensors").read_bytes() == weights
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("traces/*/*")} == shards


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--config.trainin.steps=3", "did you mean --config.training.steps"),
        ("--config.training.loss=hinge", "training.loss"),
        ("--config.predictor.width=17", "predictor.width"),
        ("--config.model=nowhere", "nowhere"),
        ("--config.sequences.train.vqa_v2=0", "sequences.train"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(model_dir, tmp_path, capsys, argument, message):
    arguments = [f"--config.model={model_dir}", f"--workdir={tmp_path / 'new'}", *SMALL, argument]
    assert run(*arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.strip().splitlines()) == 1
    assert not (tmp_path / "new").exists()


def test_examples_of_two_sets_stay_apart_and_circular_questions_come_once(tmp_path):
    write_benchmark(tmp_path, train=8, val=24, seed=0)
    counts = {"vqa_v2": 6, "mmbench": 3}
    first = benchmark_examples(tmp_path, "val", counts)
    second = benchmark_examples(tmp_path, "val", counts, skip=counts)
    assert len({example.id for example in (*first, *second)}) == 18
    assert len({question_of(example) for example in (*first[6:], *second[6:])}) == 6
    assert [example.id for example in benchmark_examples(tmp_path, "val", counts)] == [example.id for example in first]


def test_too_few_examples_say_so(model_dir, tmp_path, capsys):
    arguments = [f"--config.model={model_dir}", f"--workdir={tmp_path}", *SMALL, "--config.sequences.train.vqa_v2=900"]
    assert run(*arguments) == 2
    assert "lower `sequences`" in capsys.readouterr().err
