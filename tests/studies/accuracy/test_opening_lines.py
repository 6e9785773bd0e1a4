"""What a study says before its first cell."""

import subprocess
import sys

import pytest

from configs import study_base
from expertflow_jax.studies.accuracy.opening_lines import opening_lines
from expertflow_jax.studies.accuracy.preparation import ask, check
from expertflow_jax.tasks.digit_scenes.files import write_benchmark
from expertflow_jax.tasks.registry import make_task

WITHOUT_OPENPYXL = """
import sys
sys.modules["openpyxl"] = None  # as where it is not installed
from pathlib import Path
from expertflow_jax.tasks.registry import make_task
task = make_task("mmbench", Path(sys.argv[1]), "val")
print(task.unwritten)
print(task.submission(task.examples(), ["A"] * len(task.examples())))
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    write_benchmark(folder, train=8, val=40, seed=0)
    return folder


def test_each_task_has_a_line_on_its_power(data, tmp_path):
    config = study_base.get_config()
    config.data_dir, config.num_examples = str(data), 16
    config.grids.lossy = study_base.grid(("cache_moe",), miss_policies=("wait", "drop"), cache_fractions=(0.25, 0.5))
    todo = check(config)
    assert sum(not cell.lossless for cell in todo) == 4  # drop, two sizes, two tasks
    lines = opening_lines(ask(config, tmp_path, todo), todo, config.num_examples)
    power = [line for line in lines if line.startswith("power ")]
    assert [line.split()[1] for line in power] == ["vqa_v2:", "mmbench:"]
    assert power[0].startswith("power vqa_v2: 16 examples in ")
    assert "points if 30% of scores change" in power[0]
    assert "over 2 lossy cells" in power[0]


def test_without_openpyxl_one_line_says_what_is_missing(data):
    run = subprocess.run([sys.executable, "-c", WITHOUT_OPENPYXL, data], capture_output=True, text=True, check=True)
    unwritten, submission = run.stdout.splitlines()
    assert "submissions/*.xlsx are not written, openpyxl is missing; pip install 'expertflow-jax[xlsx]'" in unwritten
    assert submission == "None"


def test_with_openpyxl_nothing_is_missing(data):
    pytest.importorskip("openpyxl")
    assert make_task("mmbench", data, "val").unwritten is None
