"""`OffloadedModel` as a practitioner uses it: a budget that holds, answers that do not depend on it, clear refusals."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from expertflow_jax import OffloadedModel
from expertflow_jax.errors import InputError
from expertflow_jax.offload.budget import parse_bytes
from expertflow_jax.tasks.digit_scenes.items import make_items

SIZES = {"max_tokens": 64, "max_image_tokens": 9}
ITEMS = make_items("val", 12, seed=3)


def load(**options):
    return OffloadedModel.from_pretrained("digit_scenes_moe", **SIZES | options)


@pytest.fixture(scope="module")
def resident():
    with load(policy="resident", max_batch_size=4) as model:
        yield model


@pytest.fixture(scope="module")
def small():
    with load(memory_budget="11MiB", predictor="digit_scenes_predictor", max_batch_size=4) as model:
        yield model


def answers(model):
    found = model.generate([item.question for item in ITEMS], [item.image for item in ITEMS], max_new_tokens=4)
    return [answer.text for answer in found]


def test_answers_are_right_and_do_not_depend_on_the_budget(resident, small):
    right = answers(resident)
    assert np.mean([a == item.answer for a, item in zip(right, ITEMS, strict=True)]) >= 0.75
    assert answers(small) == right


def test_the_budget_holds():
    """In a process of its own: what is measured is all that lives on the device."""
    script = """
from test_api import answers, load
with load(memory_budget="11MiB", predictor="digit_scenes_predictor", max_batch_size=4) as model:
    answers(model)
    stats, plan = model.stats(), model.memory_plan()
assert stats["peak_device_bytes"] <= plan.total_bytes <= 11 * 2**20, (stats, plan)
assert 0 < plan.slots < plan.num_layers * plan.num_experts
assert stats["lossless"]
assert stats["bytes_transferred"] > 0
assert 0 < stats["hit_rate"] < 1
assert stats["predictor_seconds"] > 0
"""
    here = Path(__file__).parent
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | {"PYTHONPATH": f"{here}{os.pathsep}{here.parent}"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


def test_logits_are_bit_identical_and_padding_changes_none(resident, small):
    ids = np.random.default_rng(0).integers(12, 40, (4, 8))
    mask = np.arange(8) < np.array([[8], [4], [7], [1]])
    expected = resident.logits(ids, mask)
    assert expected.shape[:2] == (4, 8)
    np.testing.assert_array_equal(small.logits(ids, mask)[mask], expected[mask])


def test_a_routing_trace_has_the_models_shape(resident):
    trace = resident.routing_trace(np.full((4, 5), 7))
    assert trace.experts.shape == (4, 5, 6, 2)
    assert trace.num_experts == 64


def test_streaming_shows_the_text_so_far(resident):
    seen = []
    [answer] = resident.generate(
        "Read the top row.", [ITEMS[0].image], max_new_tokens=3, stream=lambda *a: seen.append(a)
    )
    assert seen[-1] == (0, answer.text)
    assert len(seen) == len(answer.token_ids)


def test_a_stop_text_ends_the_answer_and_is_no_part_of_it(resident):
    item = next(i for i in ITEMS if len(i.answer.split()) > 1)
    (whole,) = resident.generate([item.question], [item.image], max_new_tokens=4)
    second = whole.text.split()[1]
    (cut,) = resident.generate([item.question], [item.image], max_new_tokens=4, stop=second)
    assert cut.text.strip() == whole.text.split()[0]
    assert cut.finished
    assert len(cut.token_ids) <= len(whole.token_ids)


def test_ragged_token_ids_are_answered_as_each_alone(resident):
    rng = np.random.default_rng(0)
    ragged = [rng.integers(20, 60, size=n).tolist() for n in (8, 3, 5, 1)]
    together = resident.generate(ragged, max_new_tokens=3)
    alone = [resident.generate(np.array([ids]), max_new_tokens=3)[0] for ids in ragged]
    assert [a.token_ids for a in together] == [a.token_ids for a in alone]


def test_sampling_is_a_function_of_its_seed(resident):
    def sample(seed):
        return resident.generate("What is this?", max_new_tokens=6, temperature=2.0, top_k=20, top_p=0.9, seed=seed)

    assert sample(1) == sample(1)
    assert any(sample(1) != sample(seed) for seed in range(2, 6))


def test_a_tight_budget_means_smaller_batches(resident):
    with load(memory_budget="5MiB", policy="on_demand") as model:
        assert model.memory_plan().total_bytes <= parse_bytes("5MiB")
        assert answers(model) == answers(resident)  # in batches that fit, whatever was asked at once


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"memory_budget": "1MiB"}, "below the minimum of"),
        ({"memory_budget": "much"}, "8GiB"),
        ({"policy": "oracle"}, "eval.study"),
        ({"policy": "expertflo"}, "expertflow"),
        ({"miss_policy": "skip"}, "drop"),
        ({"dtype": "float16"}, "bfloat16"),
        ({"link": "usb"}, "emulated"),
        ({"predictor": "nowhere"}, "nowhere"),
    ],
)
def test_what_cannot_work_is_refused(options, said):
    with pytest.raises(InputError, match=said) as caught:
        load(**options)
    assert "\n" not in str(caught.value)


def test_a_missing_model_is_named():
    with pytest.raises(InputError, match="/nowhere/at/all"):
        OffloadedModel.from_pretrained("/nowhere/at/all")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"prompts": []}, "no prompts"),
        ({"prompts": ["a", "b"], "images": [None]}, "1 images for 2 prompts"),
        ({"prompts": "a", "max_new_tokens": 0}, "max_new_tokens"),
        ({"prompts": "a", "max_new_tokens": 2.5}, "max_new_tokens"),
        ({"prompts": "a " * 200}, "max_tokens"),
        ({"prompts": "a", "images": ["/nowhere.png"]}, "/nowhere.png"),
        ({"prompts": np.zeros((2, 3))}, "integers"),
        ({"prompts": [[7, 10_000]]}, "token 10000 is outside the vocabulary"),
        ({"prompts": [{"role": "user"}]}, "messages: want objects"),
        ({"prompts": "a", "decoder_input_ids": np.ones((1, 2), int)}, "no encoder"),
    ],
)
def test_requests_that_cannot_be_served(resident, arguments, said):
    with pytest.raises(InputError, match=said):
        resident.generate(**arguments)
