"""`eval.study` as a user runs it: complete rows, the same rows after a kill and in another folder, clear refusals."""

import csv
import json
import shutil
from pathlib import Path

import pytest

from eval import study
from expertflow_jax import cli
from expertflow_jax.harness.rows import ROW_KEYS
from expertflow_jax.locate import locate
from expertflow_jax.tasks.digit_scenes.files import write_benchmark

CONFIG = """
from configs import study_base


def get_config():
    config = study_base.get_config()
    config.num_examples = 8
    config.batch_size = 4
    config.window = 8
    config.digit_scenes.train = 8
    config.digit_scenes.val = 24
    config.bootstrap_samples = 200
    grid = study_base.grid
    config.grids.lossless = grid(("resident", "cache_moe", "expertflow", "oracle"), cache_fractions=(0.25,))
    config.grids.grouped = grid(("expertflow",), ("greedy",), cache_fractions=(0.25,))
    config.grids.lossy = grid(("expertflow",), ("fifo",), ("substitute",), memory_budgets=("14MiB",))
    return config
"""

RESIDENT = """
    config.tasks = ("vqa_v2",)
    config.predictor = ""
    config.grids.lossless = study_base.grid(("resident",), cache_fractions=(0.25,))
    return config
"""


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("config") / "small.py"
    path.write_text(CONFIG)
    return path


def run(config: Path, workdir: Path) -> None:
    assert cli.run_command(study.main, description="test", argv=[f"--config={config}", f"--workdir={workdir}"]) == 0


@pytest.fixture(scope="module")
def finished(config, tmp_path_factory) -> Path:
    workdir = tmp_path_factory.mktemp("study") / "run"
    run(config, workdir)
    return workdir


def rows(workdir: Path) -> list[dict]:
    return [json.loads(line) for line in (workdir / "results.jsonl").read_text().splitlines()]


def test_rows_are_complete_and_lossless_cells_are_exact(finished):
    found = rows(finished)
    assert len(found) == 2 * (4 + 2 + 1)  # tasks x (policies, one grouped and its reference, one lossy)
    for row in found:
        assert tuple(row) == ROW_KEYS
        assert row["peak_device_bytes"] <= row["memory_budget_bytes"]
        assert row["num_examples"] > 0
        if row["lossless"]:
            assert row["bit_identical"]
        if row["lossless"] and row["scheduler"] == "fifo":
            assert row["flips"] == 0
            assert row["logit_kl"] == 0
            assert row["accuracy_delta"] == 0
        predictions = finished / "predictions" / f"{row['cell_id']}.jsonl"
        assert len(predictions.read_text().splitlines()) == row["num_examples"]
    by_policy = {r["policy"]: r["hit_rate"] for r in found if r["task"] == "vqa_v2" and r["scheduler"] == "fifo"
                 and r["lossless"]}  # fmt: skip
    assert by_policy["resident"] == 1.0
    assert by_policy["oracle"] >= by_policy["expertflow"]


def test_report_and_tables_are_written(finished):
    for name in ("report.md", "report.html", "results.csv", "config.json", "environment.json"):
        assert (finished / name).stat().st_size > 0
    assert list((finished / "plots").glob("*.png"))
    assert 'src="data:image/png;base64' in (finished / "report.html").read_text()


def test_groups_and_what_others_read(finished):
    """Scores by group, the file of VQA's server, and lmms-eval's logs, of every cell."""
    with (finished / "groups.csv").open() as file:
        lines = list(csv.DictReader(file))
    for row in rows(finished):
        of_cell = {line["group"]: float(line["score"]) for line in lines if line["cell_id"] == row["cell_id"]}
        assert of_cell["accuracy"] == pytest.approx(row["accuracy"])
        assert any(name.startswith(("answer_type/", "category/")) for name in of_cell)
        path = finished / "predictions" / f"{row['cell_id']}.jsonl"
        answers = [json.loads(line) for line in path.read_text().splitlines()]
        logs = finished / "lmms_eval" / row["cell_id"]
        (samples,) = (path.read_text().splitlines() for path in logs.glob(f"*_samples_{row['task']}.jsonl"))
        assert [json.loads(line)["filtered_resps"] for line in samples] == [answer["prediction"] for answer in answers]
        assert {"doc_id", "target", "doc_hash", "input"} <= json.loads(samples[0]).keys()
        (results,) = (json.loads(path.read_text()) for path in logs.glob("*_results.json"))
        assert results["results"][row["task"]]["accuracy,none"] == pytest.approx(row["accuracy"])
        second = {"vqa_v2": "exact_match,none", "mmbench": "second_accuracy,none"}[row["task"]]
        assert results["results"][row["task"]][second] == pytest.approx(row["second_accuracy"])
        if row["task"] == "vqa_v2":
            submission = json.loads((finished / "submissions" / f"{row['cell_id']}.json").read_text())
            assert submission == [{"question_id": int(a["id"]), "answer": a["prediction"]} for a in answers]
    report = (finished / "report.md").read_text()
    for words in ("## By group", "answer_type/number", "## Evaluators", "GT-Vision-Lab/VQA a013f00", "no judge"):
        assert words in report


def test_a_split_without_public_answers_gives_what_the_server_takes(config, tmp_path):
    data = tmp_path / "data"
    write_benchmark(data, train=8, val=8, seed=0)
    folder = data / "vqa_v2"
    (folder / "v2_OpenEnded_mscoco_val2014_questions.json").rename(
        folder / "v2_OpenEnded_mscoco_test2015_questions.json"
    )
    (folder / "test2015").mkdir()
    for path in (folder / "val2014").iterdir():
        path.rename(folder / "test2015" / path.name.replace("val2014", "test2015"))
    path = config.with_name("test_split.py")
    path.write_text(CONFIG.replace("    return config\n", RESIDENT))
    workdir = tmp_path / "run"
    arguments = ["--config.split=test", f"--config.data_dir={data}", "--config.num_examples=5"]
    arguments += ["--config.grids.lossy.schedulers=()", "--config.grids.grouped.schedulers=()"]
    arguments += ["--config.harness=lmms-eval", "--config.sample_seed=1"]
    argv = [f"--config={path}", f"--workdir={workdir}", *arguments]
    assert cli.run_command(study.main, description="test", argv=argv) == 0
    (row,) = rows(workdir)
    assert row["accuracy"] is None
    assert row["second_accuracy"] is None
    submission = json.loads((workdir / "submissions" / f"{row['cell_id']}.json").read_text())
    assert len(submission) == row["num_examples"]
    assert "are not public" in (workdir / "report.md").read_text()
    assert cli.run_command(study.main, description="test", argv=argv) == 0  # read back


@pytest.mark.parametrize("whole", [pytest.param(1, marks=pytest.mark.slow), 11])  # within the references, the rest
def test_a_study_that_ended_within_a_row_ends_with_the_same_rows(config, finished, whole):
    """What a kill leaves; tests/harness/test_killed_commands.py kills."""
    results = finished / "results.jsonl"
    before = results.read_bytes()
    lines = before.splitlines(keepends=True)
    results.write_bytes(b"".join(lines[:whole]) + lines[whole][:100])
    run(config, finished)
    assert results.read_bytes() == before


def test_a_finished_study_runs_nothing_again(config, finished):
    files = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in finished.glob("predictions/*")}
    before = (finished / "results.jsonl").read_bytes()
    run(config, finished)
    assert (finished / "results.jsonl").read_bytes() == before
    assert {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in finished.glob("predictions/*")} == files


def refused(capsys, config: Path, *arguments: str) -> str:
    """Runs the command, which must refuse in one line with exit code 2; returns the line."""
    code = cli.run_command(study.main, description="test", argv=[f"--config={config}", *arguments])
    error = capsys.readouterr().err
    assert code == 2, error
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    return error


def no_rows(workdir: Path) -> bool:
    return not (workdir / "results.jsonl").exists()


def test_unknown_key_is_refused_with_the_nearest(capsys, config, tmp_path):
    assert "batch_size" in refused(capsys, config, f"--workdir={tmp_path}", "--config.batchsize=2")


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('"cache_moe"', '"cache_more"', "cache_moe"),
        ('"greedy"', '"greddy"', "greedy"),
        ('"substitute"', '"replace"', "substitute"),
        ('"14MiB"', '"1MiB"', "minimum"),
        ('"14MiB"', '"plenty"', "plenty"),
        ("(0.25,)", "(1.25,)", "1.25"),
    ],
)
def test_a_bad_grid_is_refused_before_any_cell(capsys, tmp_path, old, new, said):
    config = tmp_path / "bad.py"
    config.write_text(CONFIG.replace(old, new))
    workdir = tmp_path / "run"
    assert said in refused(capsys, config, f"--workdir={workdir}")
    assert no_rows(workdir)


def test_missing_and_truncated_checkpoints_are_refused(capsys, config, tmp_path):
    workdir = tmp_path / "run"
    said = refused(capsys, config, f"--workdir={workdir}", "--config.model=/nowhere/model")
    assert "/nowhere/model" in said
    model = tmp_path / "model"
    shutil.copytree(locate("digit_scenes_moe"), model)
    weights = model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100_000])
    said = refused(capsys, config, f"--workdir={tmp_path / 'other'}", f"--config.model={model}")
    assert "model.safetensors" in said
    assert no_rows(workdir)
    assert no_rows(tmp_path / "other")


def test_another_models_predictor_is_refused(capsys, config, tmp_path):
    predictor = tmp_path / "predictor"
    shutil.copytree(locate("digit_scenes_predictor", "predictor"), predictor)
    settings = json.loads((predictor / "predictor_config.json").read_text())
    settings["model_fingerprint"] = "0" * 32
    (predictor / "predictor_config.json").write_text(json.dumps(settings))
    refused(capsys, config, f"--workdir={tmp_path / 'run'}", f"--config.predictor={predictor}")


@pytest.fixture
def data(tmp_path) -> Path:
    write_benchmark(tmp_path / "data", train=4, val=16, seed=0)
    return tmp_path / "data"


def damage_questions(data: Path) -> str:
    path = data / "vqa_v2/v2_OpenEnded_mscoco_val2014_questions.json"
    path.write_text(path.read_text()[:200])
    return path.name


def damage_table(data: Path) -> str:
    path = data / "mmbench/MMBench_DEV_EN.tsv"
    lines = path.read_text().splitlines()
    lines[3] = lines[3].rsplit("\t", 1)[0]
    path.write_text("\n".join(lines) + "\n")
    return path.name


def damage_image(data: Path) -> str:
    path = min((data / "vqa_v2/val2014").glob("*.jpg"))
    path.write_bytes(path.read_bytes()[:300])
    return path.name


@pytest.mark.parametrize("damage", [damage_questions, damage_table, damage_image])
def test_damaged_benchmark_files_are_named(capsys, config, data, tmp_path, damage):
    name = damage(data)
    workdir = tmp_path / "run"
    assert name in refused(capsys, config, f"--workdir={workdir}", f"--config.data_dir={data}")
    assert no_rows(workdir)


def test_dry_run_prints_the_plan_and_writes_no_results(capsys, config, tmp_path):
    workdir = tmp_path / "run"
    code = cli.run_command(
        study.main, description="test", argv=[f"--config={config}", f"--workdir={workdir}", "--dry_run"]
    )
    said = capsys.readouterr().out
    assert code == 0
    assert "expert slots" in said
    assert "14 cells" in said
    assert no_rows(workdir)


def test_another_config_in_the_same_folder_is_refused(capsys, config, finished):
    said = refused(capsys, config, f"--workdir={finished}", "--config.batch_size=2")
    assert "another config" in said


@pytest.mark.slow
def test_changed_weights_and_changed_answers_are_refused_by_name(capsys, data, tmp_path):
    model, workdir, config = tmp_path / "model", tmp_path / "run", tmp_path / "resident.py"
    shutil.copytree(locate("digit_scenes_moe"), model)
    config.write_text(CONFIG.split("    grid =")[0] + RESIDENT)
    arguments = [f"--workdir={workdir}", f"--config.model={model}", f"--config.data_dir={data}"]
    whole = [f"--config={config}", *arguments]
    assert cli.run_command(study.main, description="test", argv=whole) == 0
    before = rows(workdir)
    weights = model / "model.safetensors"
    answers = data / "vqa_v2/v2_mscoco_val2014_annotations.json"
    for path, name in ((weights, "model file model.safetensors"), (answers, f"data_dir file {answers}")):
        content = path.read_bytes()
        middle = len(content) // 2
        path.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
        capsys.readouterr()
        line = refused(capsys, config, *arguments)
        assert f"other inputs: {name} is not what it was; put it back" in line
        path.write_bytes(content)
    assert cli.run_command(study.main, description="test", argv=whole) == 0
    assert rows(workdir) == before
