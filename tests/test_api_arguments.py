"""What is given to a model is taken for what it is, or refused in one line that says how."""

import base64
import io
from collections import UserDict
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from expertflow_jax import InputError, OffloadedModel
from expertflow_jax.inference.chat import encode_prompts
from expertflow_jax.offload.misses import Drop, Wait
from expertflow_jax.offload.policies.expertflow import ExpertFlow
from expertflow_jax.offload.policies.oracle import Oracle
from expertflow_jax.tasks.digit_scenes.items import make_items

ITEM, OTHER = make_items("val", 2, seed=3)
QUESTION = ITEM.question
PICTURE = Image.fromarray(ITEM.image)
SIZES = {"cache_fraction": 0.5, "max_tokens": 64, "max_image_tokens": 9, "max_batch_size": 2}


class Tensor:
    """Of a library that NumPy can read."""

    def __init__(self, values):
        self.values = values

    def __array__(self, dtype=None, copy=None):
        return self.values


class Careless(ExpertFlow):
    name = "careless"
    lossless = False


@pytest.fixture(scope="module")
def model():
    with OffloadedModel.from_pretrained("digit_scenes_moe", **SIZES) as loaded:
        yield loaded


@pytest.fixture(scope="module")
def answer(model):
    return model.generate([QUESTION], [ITEM.image], max_new_tokens=4)


def encoded():
    buffer = io.BytesIO()
    PICTURE.save(buffer, "PNG")
    return buffer.getvalue()


def turn(*items):
    return {"role": "user", "content": [{"type": "text", "text": QUESTION}, *items]}


def test_an_image_is_taken_for_what_it_is(model, answer, tmp_path):
    file = tmp_path / "scene.png"
    PICTURE.save(file)
    url = "data:image/png;base64," + base64.b64encode(encoded()).decode()
    array = ITEM.image
    for images in (
        PICTURE,
        str(file),
        Path(file),
        array,
        array[None],
        [array],
        (PICTURE,),
        [[PICTURE]],
        url,
        Tensor(array),
    ):
        assert model.generate(QUESTION, images, max_new_tokens=4) == answer, type(images)
    for item in ({"image": PICTURE}, {"path": str(file)}, {"image": url}):
        assert model.generate(turn({"type": "image", **item}), max_new_tokens=4) == answer
    assert model.generate(turn({"type": "image_url", "image_url": {"url": url}}), max_new_tokens=4) == answer


def test_a_message_or_a_conversation_is_taken_for_what_it_is(model, answer):
    message = turn({"type": "image"})
    for prompts in (message, [message], [[message]]):
        for images in (PICTURE, [PICTURE], [[PICTURE]]):
            assert model.generate(prompts, images, max_new_tokens=4) == answer
    inside = turn({"type": "image", "image": PICTURE})
    assert model.generate([[inside], [message]], PICTURE, max_new_tokens=4) == answer * 2
    assert model.generate([[inside], [message]], [[], [PICTURE]], max_new_tokens=4) == answer * 2


def test_what_a_processor_returns_can_be_passed_on(model):
    """With padding on either side, in arrays, lists, or another library's tensors."""
    processor = model._model.processor
    first, second = encode_prompts(processor, "", [QUESTION, OTHER.question], [ITEM.image, None])
    expected = model.generate([QUESTION, OTHER.question], [ITEM.image, None], max_new_tokens=4)
    pictures = {"pixel_values": first.pixel_values, "image_grid_thw": first.image_grid_thw}
    width = max(len(first.input_ids), len(second.input_ids)) + 2
    for left in (True, False):
        ids, mask = np.zeros((2, width), np.int64), np.zeros((2, width), np.int64)
        for row, prompt in enumerate((first, second)):
            place = slice(-len(prompt.input_ids), None) if left else slice(len(prompt.input_ids))
            ids[row, place], mask[row, place] = prompt.input_ids, 1
        made = {"input_ids": ids, "attention_mask": mask, "mm_token_type_ids": mask, **pictures}
        assert model.generate(**made, max_new_tokens=4) == expected
        assert model.generate(UserDict(made), max_new_tokens=4) == expected
        assert model.generate(ids.tolist(), attention_mask=mask.tolist(), **pictures, max_new_tokens=4) == expected
        tensors = {name: Tensor(values) for name, values in made.items()}
        assert model.generate(**tensors, max_new_tokens=4) == expected
    assert model.logits(**made).shape == (2, width, 80)
    rows = [first.input_ids.tolist(), second.input_ids.tolist()]
    assert model.generate(input_ids=rows, **pictures, max_new_tokens=4) == expected
    assert model.generate(input_ids=rows[1], max_new_tokens=4) == expected[1:]


MASKED = {"input_ids": [[20, 21, 22]]}
REFUSED = [
    ({}, "no prompts"),
    ({"prompts": 5}, "int is no prompt"),
    ({"prompts": b"text"}, "bytes is no prompt"),
    ({"prompts": [QUESTION, 5]}, "prompt 1 is int"),
    ({"prompts": [[QUESTION]]}, "messages: want objects"),
    ({"prompts": "\udce9"}, "UTF-8"),
    ({"prompts": [QUESTION, QUESTION], "images": PICTURE}, "1 images for 2 prompts"),
    ({"prompts": QUESTION, "images": [PICTURE, PICTURE]}, r"\[\[first, second\]\]"),
    ({"prompts": QUESTION, "images": "http://host/scene.png"}, "nothing is downloaded"),
    ({"prompts": QUESTION, "images": {"image": PICTURE}}, "paths, PIL images"),
    ({"prompts": QUESTION, "images": 5}, "paths, PIL images"),
    ({"prompts": turn({"type": "imgae"})}, 'want {"type": "text"'),
    ({"prompts": turn({"type": "image"})}, "1 image placeholders"),
    ({"prompts": turn({"type": "image"}), "images": [PICTURE] * 2}, "1 images more"),
    *(({"prompts": ids}, "empty") for ids in ([[]], [[5], []], np.zeros((2, 0), int))),
    *(({"prompts": ids}, "integers") for ids in ([[True]], [True, 5], [[1.5]], [5, 1.5], [[5], ["a"]], np.array(5))),
    *(({"prompts": ids}, "messages: want objects") for ids in ([["5"]], [[None]])),
    *(({"prompts": [[20, n]]}, "outside the vocabulary of 80") for n in (80, -1, 2**31, 2**32 + 5, 2**64, -(2**70))),
    ({"prompts": np.array([[2**63]], np.uint64)}, "outside the vocabulary"),
    ({"prompts": QUESTION, "max_new_tokens": True}, "max_new_tokens"),
    ({"prompts": QUESTION, "max_new_tokens": 2**70}, "the context is"),
    ({"prompts": QUESTION, "seed": -1}, "seed"),
    *(({"prompts": QUESTION, "stop": stop}, "stop") for stop in ([""], 5, [5], [None])),
    ({"prompts": QUESTION, "stream": 5}, "stream"),
    ({"prompts": QUESTION, **MASKED}, "input_ids was given beside prompts"),
    ({"prompts": QUESTION, "attention_mask": [[1]]}, "attention_mask was given beside prompts"),
    ({"images": PICTURE, **MASKED}, "pixel_values"),
    ({"prompts": {**MASKED, "pixel_values_videos": 1}}, "pixel_values_videos"),
    *(
        ({**MASKED, "attention_mask": [mask]}, "attention_mask")
        for mask in ([0, 0, 0], [1, 0, 1], [1, 1], [1, 1, 2], ["a"])
    ),
    ({**MASKED, "attention_mask": [[1, 1, 1]] * 2}, "2 rows, input_ids has 1"),
    ({**MASKED, "pixel_values": np.zeros((4, 192))}, "image_grid_thw"),
    ({**MASKED, "pixel_values": np.zeros((4, 192)), "image_grid_thw": [[10**9] * 3]}, "image_grid_thw wants"),
    ({**MASKED, "pixel_values": "scene.png", "image_grid_thw": [[1, 2, 2]]}, "want numbers"),
]


@pytest.mark.parametrize(("arguments", "message"), REFUSED)
def test_what_is_not_meant_is_refused_in_one_line(model, arguments, message):
    with pytest.raises(InputError, match=message) as caught:
        model.generate(**arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([[5, 2**32 + 5]], "outside the vocabulary"),
        ([5, 6], r"want integers \[B, T\]"),
        ([[True]], "integers"),
        ([[5], [6, 7]], "input_ids"),
        (None, "input_ids"),
    ],
)
def test_logits_refuses_the_same(model, ids, message):
    with pytest.raises(InputError, match=message):
        model.logits(ids)


def test_nothing_is_answered_where_a_later_prompt_is_refused(model):
    texts = []
    with pytest.raises(InputError, match="max_tokens"):
        model.generate([QUESTION] * 4 + ["a " * 200], stream=lambda *a: texts.append(a))
    assert not texts


@pytest.mark.parametrize(
    ("options", "message"),
    [
        *(({"cache_fraction": value}, "cache_fraction") for value in ("x", np.nan, 0, 2, -1, True)),
        *(({"max_batch_size": value}, "max_batch_size") for value in (0, -1, 1.5, "8", True)),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_image_tokens": -1}, "max_image_tokens"),
        ({"device_form": "replace"}, "did you mean 'replaced'"),
        ({"policy": Oracle}, "recorded routing"),
        ({"policy": Oracle()}, "recorded routing"),
        ({"policy": "nowhere:Policy"}, "nowhere"),
        ({"policy": 5}, "policy"),
        ({"miss_policy": ExpertFlow}, "miss policy"),
        ({"predictor": 5}, "predictor"),
    ],
)
def test_options_that_cannot_be_meant(options, message):
    with pytest.raises(InputError, match=message) as caught:
        OffloadedModel.from_pretrained("digit_scenes_moe", **SIZES | options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("policy", "miss_policy", "lossless"),
    [
        (ExpertFlow(), "wait", True),
        (ExpertFlow, Wait, True),
        ("expertflow_jax.offload.policies.on_demand:OnDemand", Wait(), True),
        ("on_demand", Drop(), False),
        (Careless, "wait", False),
    ],
)
def test_policies_are_names_classes_or_objects(answer, policy, miss_policy, lossless):
    with OffloadedModel.from_pretrained("digit_scenes_moe", **SIZES, policy=policy, miss_policy=miss_policy) as model:
        texts = model.generate(QUESTION, PICTURE, max_new_tokens=4)
        assert model.stats()["lossless"] is lossless
    if not isinstance(miss_policy, Drop):
        assert texts == answer


@pytest.mark.parametrize("form", ["replaced", pytest.param("pool", marks=pytest.mark.slow)])
def test_a_form_for_other_devices_may_be_asked_for(answer, form):
    """On a CPU the pool's kernel is interpreted, so few tokens are answered."""
    with OffloadedModel.from_pretrained("digit_scenes_moe", **SIZES, device_form=form) as model:
        assert model._model.stages.form.slots == form
        assert model.generate(QUESTION, PICTURE, max_new_tokens=2)[0].token_ids == answer[0].token_ids[:2]
