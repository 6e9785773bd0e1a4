"""Training goes on after a kill as if nothing had happened, and refuses another run's workdir."""

import json
import sys
from pathlib import Path

import jax
import ml_collections
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))
from small_model import small_config

from expertflow_jax.errors import InputError
from expertflow_jax.harness.workdir import Workdir
from expertflow_jax.training import losses, moe

MODEL = small_config(num_hidden_layers=1, num_experts=4)


def config() -> ml_collections.ConfigDict:
    return ml_collections.ConfigDict(
        {
            "seed": 0,
            "steps": 9,
            "decay_steps": 9,
            "learning_rate": 1e-2,
            "final_lr_fraction": 0.1,
            "warmup_steps": 2,
            "weight_decay": 0.01,
            "adam_b2": 0.95,
            "clip_norm": 1.0,
            "ema_decay": 0.9,
            "balance_weight": 0.01,
            "log_every": 1,
            "eval_every": 100,
            "eval_group": 2,
            "checkpoint_every": 3,
        }
    )


def batch_at(step: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(step)
    ids = rng.integers(5, 40, size=(4, 6)).astype(np.int32)
    ids[:, 4:] = ids[:, :1]  # the answer repeats the first token
    lengths = np.full(4, 6, np.int32)
    mask = np.zeros((4, 6), bool)
    mask[:, 4:] = True
    return {
        "input_ids": ids,
        "lengths": lengths,
        "positions": MODEL.positions(ids, lengths, None)[0],
        "answer_mask": mask,
    }


def forward(module, batch):
    return module.forward(batch["input_ids"], batch["positions"], batch["lengths"])


class Killed(Exception):
    pass


def run(workdir: Path, kill_at: int | None = None):
    def on_step(number: int) -> None:
        if number == kill_at:
            raise Killed

    with Workdir(workdir, config().to_dict()) as place:
        return moe.train(
            config(),
            MODEL,
            place,
            batch_at=batch_at,
            held_out=lambda: [("val", batch_at(1000))],
            forward=forward,
            on_step=on_step,
        )


def steps_logged(workdir: Path) -> list[int]:
    return [json.loads(line)["step"] for line in (workdir / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_a_killed_run_ends_with_the_same_loss(tmp_path):
    whole, expected = run(tmp_path / "whole")
    with pytest.raises(Killed):
        run(tmp_path / "killed", kill_at=4)  # the newest checkpoint has three steps
    with (tmp_path / "killed" / "metrics.jsonl").open("a") as log:
        log.write('{"step": 5, "lo')  # as a kill in the middle of a line leaves it
    resumed, found = run(tmp_path / "killed")
    assert steps_logged(tmp_path / "killed") == list(range(9)) == steps_logged(tmp_path / "whole")
    assert found["loss"] == expected["loss"]
    assert found["held_out/val"] == expected["held_out/val"]
    for a, b in zip(jax.tree.leaves(moe.nnx.state(whole)), jax.tree.leaves(moe.nnx.state(resumed)), strict=True):
        np.testing.assert_array_equal(a, b)


def test_another_config_is_refused(tmp_path):
    Workdir(tmp_path, {**config().to_dict(), "seed": 1}).close()
    with pytest.raises(InputError, match=r"results of another config: seed: 1, now 0; name another --workdir"):
        run(tmp_path)


def test_a_second_process_is_refused(tmp_path):
    with Workdir(tmp_path, config().to_dict()), pytest.raises(InputError, match="another process is writing"):
        run(tmp_path)


def test_balanced_routing_has_balance_loss_one():
    experts = 4
    ids = np.arange(8, dtype=np.int32).reshape(1, 1, 8, 1) % experts
    probs = np.full((1, 1, 8, experts), 1 / experts, np.float32)
    assert float(losses.load_balancing_loss(probs, ids)) == pytest.approx(1.0)
    collapsed = np.zeros_like(ids)
    sure = np.zeros_like(probs)
    sure[..., 0] = 1
    assert float(losses.load_balancing_loss(sure, collapsed)) == pytest.approx(experts)


def test_padding_does_not_count_in_the_balance():
    ids = np.array([0, 1, 2, 3, -1, -1], np.int32).reshape(1, 1, 6, 1)
    probs = np.full((1, 1, 6, 4), 0.25, np.float32)
    probs[:, :, 4:] = np.array([1, 0, 0, 0])
    assert float(losses.load_balancing_loss(probs, ids)) == pytest.approx(1.0)


def test_exact_match_wants_every_answer_token():
    logits = np.full((2, 4, 5), -10.0, np.float32)
    ids = np.array([[1, 2, 3, 4], [1, 2, 3, 4]], np.int32)
    for t in range(3):
        logits[:, t, ids[0, t + 1]] = 10.0
    logits[1, 2] = 0.0
    logits[1, 2, 0] = 1.0
    mask = np.array([[False, False, True, True]] * 2)
    assert losses.exact_match(logits, ids, mask).tolist() == [True, False]
