"""A training run whose newest checkpoint is damaged: one line that names it, and the one before is gone on from."""

import shutil

import jax.numpy as jnp
import pytest

from expertflow_jax.errors import InputError
from expertflow_jax.harness.workdir import Workdir
from expertflow_jax.training.loop import run_steps


def run(folder, steps):
    def step(state, number):
        return {"x": state["x"] + number}, {"loss": state["x"].sum()}

    with Workdir(folder, {}) as place:
        state, row = run_steps(
            {"x": jnp.ones(3)}, step, place, steps=steps, log_every=1, checkpoint_every=2, name="t", show_progress=False
        )
    return float(state["x"][0]), row["step"]


@pytest.mark.parametrize("damage", ["truncated", "deleted"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(tmp_path, damage):
    assert run(tmp_path, 4) == (7.0, 3)
    newest = tmp_path / "checkpoints" / "4"
    for file in [path for path in newest.rglob("*") if path.is_file()]:
        if damage == "truncated":
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
        elif "manifest" in file.name or "/d/" in str(file):
            file.unlink()
    with pytest.raises(InputError, match=r"checkpoints/4: damaged.*delete it") as caught:
        run(tmp_path, 4)
    assert "\n" not in str(caught.value)
    shutil.rmtree(newest)
    assert run(tmp_path, 4) == (7.0, 3)
