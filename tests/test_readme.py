"""The README's commands are the ones that exist, and CI runs the test command that it prints."""

import re
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from expertflow_jax import OffloadedModel
from expertflow_jax.tasks.digit_scenes.items import make_items

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks() -> list[str]:
    return [block.strip() for block in re.findall(r"```sh\n(.*?)```", README, flags=re.DOTALL)]


def test_two_commands_open_the_readme():
    study, tests, *_ = blocks()
    assert "-m eval.study --config=configs/quickstart.py" in study
    assert tests.endswith("-m pytest")
    assert "\n" not in study
    assert "\n" not in tests


def test_the_example_runs(tmp_path, capsys):
    code = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)[0]
    image = tmp_path / "scene.png"
    Image.fromarray(make_items("val", 1, seed=0)[0].image).save(image)
    code = re.sub(r'image = ".*"', f"image = {str(image)!r}", code)
    exec(code, {"__name__": "__main__"})
    plan, answer, stats = capsys.readouterr().out.splitlines()
    assert "expert slots" in plan
    assert 1 <= len(answer.split()) <= 3
    assert "hit_rate" in stats


def test_ci_runs_the_test_command_of_the_readme():
    script = (ROOT / ".ci/run").read_text()
    extract = re.search(r"test_command=\$\((.*)\)\n", script)
    assert extract is not None
    found = subprocess.run(["bash", "-c", extract[1]], cwd=ROOT, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == blocks()[1]


@pytest.mark.parametrize("command", sorted(set(re.findall(r"python -m ((?:eval|train)\.\w+)", README))))
def test_commands_explain_themselves(command, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [command, "--help"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module(command, run_name="__main__")
    assert not ended.value.code
    explanation = capsys.readouterr().out
    assert "--config" in explanation
    assert "--dry_run" in explanation


def test_configs_named_in_the_readme_exist():
    for path in set(re.findall(r"configs/\w+\.py", README)):
        assert (ROOT / path).is_file(), path


def test_the_policy_of_the_contributors_guide_runs_and_changes_no_bit(tmp_path, monkeypatch):
    guide = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    code = re.findall(r"```python\n(.*?)```", guide, flags=re.DOTALL)[0]
    (tmp_path / "my_policy.py").write_text(code, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    prompts = [np.arange(start, start + 12)[None] for start in (40, 50, 60)]
    with OffloadedModel.from_pretrained("digit_scenes_moe") as resident:
        expected = [resident.logits(prompt) for prompt in prompts]
    options = {"cache_fraction": 0.25, "policy": "my_policy:Popular"}
    with OffloadedModel.from_pretrained("digit_scenes_moe", **options) as model:
        assert all(np.array_equal(model.logits(p), logits) for p, logits in zip(prompts, expected, strict=True))
        stats = model.stats()
    assert stats["prefetches"] > 0
    assert stats["evictions"] > 0
