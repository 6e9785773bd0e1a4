"""Other engines beside ours: what their rows say where they are not installed, fail, or answer."""

import importlib.util
import json
import sys

import pytest

from expertflow_jax.cli import load_config
from expertflow_jax.studies.throughput.rivals import accelerate_run, llama_run, rival_runs
from expertflow_jax.studies.throughput.tables import rival_grid

MODEL = "mixtral_8x7b"
BENCH = """#!/bin/sh
echo '[{"n_prompt": 0, "n_gen": 16, "avg_ts": 12.5, "build_commit": "abc", "model_type": "mixtral 8x7B F16"}]'
"""


def on_path(monkeypatch, folder, text):
    program = folder / "llama-bench"
    program.write_text(text)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")


def test_what_is_not_installed_has_a_row_that_says_so(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    for run in (accelerate_run("", MODEL, 1, 10**9, 4), llama_run("", "", MODEL, 10**9, 4)):
        assert run.tokens_per_second is None
        assert run.note == "not installed"


@pytest.mark.skipif(importlib.util.find_spec("torch") is not None, reason="torch is installed")
def test_an_interpreter_without_torch_counts_as_not_installed():
    assert accelerate_run(sys.executable, MODEL, 1, 10**9, 4).note == "not installed"


def test_an_answer_of_llama_bench_is_read(monkeypatch, tmp_path):
    model = tmp_path / "model.gguf"
    model.touch()
    on_path(monkeypatch, tmp_path, BENCH)
    run = llama_run(str(model), "-ngl 99", MODEL, 24 * 10**9, 16)
    assert run.tokens_per_second == 12.5
    assert run.note == "build abc, mixtral 8x7B F16"
    assert llama_run("", "", MODEL, 10**9, 16).note == "no GGUF file: config key gguf"


@pytest.mark.parametrize("text", ["#!/bin/sh\necho out of memory >&2; exit 3\n", "#!/bin/sh\necho '[{}]'\n"])
def test_a_failure_is_a_row_too(monkeypatch, tmp_path, text):
    model = tmp_path / "model.gguf"
    model.touch()
    on_path(monkeypatch, tmp_path, text)
    run = llama_run(str(model), "", MODEL, 10**9, 16)
    assert run.tokens_per_second is None
    assert run.note.startswith("failed: ")


def test_the_gpu_config_asks_for_both_and_the_report_shows_them(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    runs = rival_runs(load_config("configs/throughput_gpu.py"))
    assert [label for label, _ in runs][:2] == [
        "accelerate: qwen3_vl_30b_a3b_whole, batch 1",
        "llama.cpp: qwen3_vl_30b_a3b_whole",
    ]
    lines = [{"kind": "rival", **json.loads(json.dumps(vars(run())))} for _, run in runs]
    assert {row[-1] for row in rival_grid(lines).rows} == {"not installed"}
    assert rival_runs(load_config("configs/throughput_cpu.py")) == []
