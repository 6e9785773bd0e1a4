"""XLA's choices for a GPU stay in one file from process to process; no GPU is asked."""

import os
import re
from pathlib import Path

import pytest

from expertflow_jax import autotuning

RESULTS = 'version: 3\nresults {\n  device: "H100"\n}\n'


@pytest.fixture(autouse=True)
def no_flags(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "")


def flags(monkeypatch, folder):
    """XLA_FLAGS of the next process."""
    monkeypatch.setenv("XLA_FLAGS", "--xla_gpu_autotune_level=4")
    autotuning.keep(folder)
    return os.environ["XLA_FLAGS"]


def files(text):
    return re.fullmatch(r"--xla_gpu_autotune_level=4 \S+load\S+=(\S+) \S+dump\S+=(\S+)", text).groups()


def test_the_next_process_reads_what_the_last_one_wrote(monkeypatch, tmp_path):
    first = flags(monkeypatch, tmp_path)
    load, dump = files(first)
    assert Path(load).read_text() == ""
    Path(dump).write_text(RESULTS)
    assert flags(monkeypatch, tmp_path) == first  # the flags count to the key of a compiled program
    assert Path(load).read_text() == RESULTS


def test_half_a_file_is_not_taken_over(monkeypatch, tmp_path):
    load, dump = files(flags(monkeypatch, tmp_path))
    for half in (RESULTS[:-3], RESULTS[:10], ""):
        Path(dump).write_text(half)
        flags(monkeypatch, tmp_path)
        assert Path(load).read_text() == ""


def test_what_is_recorded_names_the_choices_but_no_place(monkeypatch, tmp_path):
    text = flags(monkeypatch, tmp_path)
    first = autotuning.describe(text)
    Path(files(text)[0]).write_text(RESULTS)
    second = autotuning.describe(text)
    assert first["file"] == second["file"]
    assert first["digest"] != second["digest"]
    assert str(tmp_path) not in str(first)
    assert autotuning.other_flags(text) == "--xla_gpu_autotune_level=4"
    assert autotuning.describe("--xla_gpu_autotune_level=4") is None


def test_the_users_own_files_stay(monkeypatch, tmp_path):
    monkeypatch.setenv("XLA_FLAGS", "--xla_gpu_load_autotune_results_from=mine.txt")
    assert autotuning.keep(tmp_path) is None
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_costs_nothing(tmp_path):
    (tmp_path / "file").touch()
    assert autotuning.keep(tmp_path / "file" / "folder") is None
