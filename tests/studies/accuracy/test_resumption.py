"""A cell that is killed behind a batch goes on there, and ends with the bits of an undisturbed run."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from configs import study_base
from expertflow_jax.offload.policies.base import CachePolicy
from expertflow_jax.offload.policies.on_demand import OnDemand
from expertflow_jax.studies.accuracy import preparation
from expertflow_jax.studies.accuracy.execution import Execution, Setting, execute
from expertflow_jax.studies.accuracy.grid import Cell
from expertflow_jax.studies.accuracy.saved_batches import SavedBatches

EVERY = float("inf")  # saves behind every batch
BATCHES = 4


class Killed(BaseException):
    pass


class Unsaveable(OnDemand):
    """It holds what has no form as bytes."""

    name = "unsaveable"

    def attach(self, slots):
        CachePolicy.attach(self, slots)
        self.secret = lambda: 0


@pytest.fixture(scope="module")
def setting(tmp_path_factory) -> Setting:
    config = study_base.get_config()
    config.tasks = ("vqa_v2",)
    config.num_examples = 6
    config.batch_size = 2
    config.window = 4
    config.digit_scenes.train, config.digit_scenes.val = 8, 24
    grid = study_base.grid
    config.grids.all = grid(("expertflow",), ("fifo",), ("wait", "low_precision(bits=8)"), (0.25,))
    todo = preparation.check(config)
    workdir = tmp_path_factory.mktemp("resumption")
    return preparation.prepare(config, preparation.ask(config, workdir, todo), todo)


def alike(a: Execution, b: Execution) -> None:
    for field in dataclasses.fields(Execution):
        first, second = getattr(a, field.name), getattr(b, field.name)
        if isinstance(first, np.ndarray):
            np.testing.assert_array_equal(first, second, err_msg=field.name)
        else:
            assert first == second, field.name


def killed_behind_every_batch(setting: Setting, cell: Cell, folder: Path, truth=None) -> tuple[Execution, list[int]]:
    """What came of the cell in the end, and the batches that ran, in all processes' order."""
    ran: list[int] = []

    def note(batches: int, of: int) -> None:
        assert of == BATCHES
        ran.append(batches)
        if batches < of and ran.count(batches) == 1:
            raise Killed

    while True:
        try:
            return execute(setting, cell, truth, note, SavedBatches(folder, cell.id, EVERY)), ran
        except Killed:
            pass


CELLS = {
    "on_demand": {},
    "cache_moe": {},
    "class_lru": {},
    "lfu": {},
    "speculative": {},
    "moe_infinity": {},
    "expertflow": {"scheduler": "random"},
    "expertflow(none)": {"miss_policy": "cache_prior(strength=1)"},
    "oracle": {},
    "se_moe": {"cache_fraction": 0.5},
    "pregated_forecast": {"cache_fraction": 0.5},
    "expertflow(gain=1)": {"scheduler": "greedy", "miss_policy": "low_precision(bits=8)"},
}
_FEW = ("expertflow",)


@pytest.mark.parametrize(
    "policy", [pytest.param(name, marks=() if name in _FEW else pytest.mark.slow) for name in CELLS]
)
def test_a_killed_cell_goes_on_with_the_same_bits(policy, setting, tmp_path):
    coordinates = {"scheduler": "fifo", "miss_policy": "wait", "cache_fraction": 0.25, **CELLS[policy]}
    cell = Cell("vqa_v2", policy, memory_budget=None, seed=0, **coordinates)
    truth = execute(setting, cell.resident).needed if policy == "oracle" else None
    whole = execute(setting, cell, truth)
    resumed, ran = killed_behind_every_batch(setting, cell, tmp_path, truth)
    assert ran == [1, 2, 3, 4]  # none ran twice
    alike(whole, resumed)


@pytest.mark.slow
def test_batches_of_a_block_go_on_where_none_is_on_its_way(setting, tmp_path):
    cell = Cell("vqa_v2", "expertflow", "fifo", "wait", 0.25, None, 0, batches_per_block=2)
    whole = execute(setting, cell)
    resumed, ran = killed_behind_every_batch(dataclasses.replace(setting), cell, tmp_path)
    assert ran[-1] == BATCHES
    alike(whole, resumed)


@pytest.mark.parametrize("damage", ["lines", "state", "code", "torn"])
def test_what_does_not_fit_together_is_thrown_away(damage, setting, tmp_path):
    cell = Cell("vqa_v2", "cache_moe", "fifo", "wait", 0.25, None, 0)

    def stop(batches: int, of: int) -> None:
        if batches == 2:
            raise Killed

    with pytest.raises(Killed):
        execute(setting, cell, None, stop, SavedBatches(tmp_path, cell.id, EVERY))
    lines, state = (next((tmp_path / "running").glob(f"*.{ending}")) for ending in ("jsonl", "state"))
    if damage == "lines":
        lines.write_bytes(lines.read_bytes().splitlines(keepends=True)[0])
    elif damage == "state":
        state.write_bytes(state.read_bytes()[:-1])
    elif damage == "code":
        header, _, rest = state.read_bytes().partition(b"\n")
        state.write_bytes(json.dumps({**json.loads(header), "code": "0"}).encode() + b"\n" + rest)
    else:  # a batch whose state was not written any more
        lines.write_bytes(lines.read_bytes() + lines.read_bytes()[:50])
    saved = SavedBatches(tmp_path, cell.id).load()
    if damage == "torn":
        assert saved is not None
        assert len(saved.batches) == 2
    else:
        assert saved is None
        assert not (tmp_path / "running").exists()


def test_a_policy_that_cannot_be_saved_runs_all_the_same(setting, tmp_path):
    cell = Cell("vqa_v2", "test_resumption:Unsaveable", "fifo", "wait", 0.25, None, 0)
    alike(execute(setting, cell), execute(setting, cell, saved=SavedBatches(tmp_path, cell.id, EVERY)))
    assert not list(tmp_path.rglob("*.state"))
