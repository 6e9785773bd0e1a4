"""The digit scenes on disk: official formats, one manifest, nothing half-written, and a guesser who stays far below."""

import json

import pytest

from expertflow_jax.errors import InputError
from expertflow_jax.tasks.digit_scenes.baselines import blind_accuracies
from expertflow_jax.tasks.digit_scenes.files import MANIFEST, write_benchmark
from expertflow_jax.tasks.registry import make_task

SIZES = {"train": 400, "val": 200, "seed": 0}


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("benchmark") / "data"
    write_benchmark(folder, **SIZES)
    return folder


def test_a_perfect_answerer_scores_one_on_both_tasks(data_dir):
    vqa, choice = make_task("vqa_v2", data_dir, "val"), make_task("mmbench", data_dir, "val")
    examples = vqa.examples()
    assert len(examples) == 200
    assert vqa.aggregate(examples, [e.target["answers"][0] for e in examples])["accuracy"] == 1
    examples = choice.examples()
    assert choice.aggregate(examples, [e.target["answer"] for e in examples])["accuracy"] == 1


def test_blind_guessing_stays_low(data_dir):
    blind = blind_accuracies(data_dir)
    assert blind["vqa_v2/question_only"] < 0.4
    assert blind["mmbench/question_only"] < 0.7
    assert blind["mmbench/letter"] == 0  # circular evaluation


def test_written_twice_it_is_the_same_and_is_left_alone(data_dir, tmp_path):
    manifest = json.loads((data_dir / MANIFEST).read_text())
    before = {path: path.stat().st_mtime_ns for path in data_dir.rglob("*") if path.is_file()}
    assert write_benchmark(data_dir, **SIZES) == manifest
    assert before == {path: path.stat().st_mtime_ns for path in before}
    assert write_benchmark(tmp_path / "again", **SIZES) == manifest
    assert write_benchmark(tmp_path / "again", **SIZES | {"seed": 1})["sha256"] != manifest["sha256"]


def test_a_changed_file_is_written_anew(tmp_path):
    sizes = {"train": 20, "val": 20, "seed": 0}
    manifest = write_benchmark(tmp_path / "data", **sizes)
    questions = tmp_path / "data" / "vqa_v2" / "v2_OpenEnded_mscoco_val2014_questions.json"
    text = questions.read_text()
    questions.write_text(text[:-10])
    assert write_benchmark(tmp_path / "data", **sizes) == manifest
    assert questions.read_text() == text


def test_somebody_elses_folder_is_refused(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(InputError, match="not this benchmark's"):
        write_benchmark(tmp_path, **SIZES)
    assert (tmp_path / "thesis.txt").exists()


@pytest.mark.parametrize("counts", [{"train": 0}, {"val": -1}])
def test_counts_must_be_positive(tmp_path, counts):
    with pytest.raises(InputError, match="at least one"):
        write_benchmark(tmp_path / "data", **SIZES | counts)
