"""Aria's config.json as the hub and transformers spell it, its images as rows of patches, and what is refused."""

import json
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx

sys.path.insert(0, str(Path(__file__).parents[1] / "parity"))
from reference_cases import CASES

from expertflow_jax.errors import InputError
from expertflow_jax.models.aria import Aria
from expertflow_jax.models.aria_config import AriaConfig
from expertflow_jax.models.aria_layout import _axis, pack, vision_inputs

FULL = Path(__file__).parents[2] / "configs" / "models" / "aria" / "config.json"
# rhymes-ai/Aria as the hub has it, in the spelling of transformers 4: what equals a default is left out.
HUB = {
    "architectures": ["AriaForConditionalGeneration"],
    "ignore_index": -100,
    "image_token_index": 9,
    "model_type": "aria",
    "pad_token_id": 2,
    "projector_patch_to_query_dict": {"1225": 128, "4900": 256},
    "text_config": {
        "hidden_size": 2560,
        "intermediate_size": 1664,
        "max_position_embeddings": 65536,
        "model_type": "aria_text",
        "moe_intermediate_size": 1664,
        "moe_num_experts": 64,
        "moe_topk": 6,
        "num_attention_heads": 20,
        "num_experts_per_tok": 6,
        "num_hidden_layers": 28,
        "num_key_value_heads": 20,
        "rope_theta": 5000000,
        "vocab_size": 100352,
    },
    "torch_dtype": "bfloat16",
    "vision_config": {
        "attention_heads": 16,
        "image_size": 980,
        "intermediate_size": 4304,
        "model_type": "idefics3_vision",
        "num_hidden_layers": 27,
        "patch_size": 14,
        "torch_dtype": "bfloat16",
    },
    "vision_feature_layer": -1,
}
CASE = CASES["aria"]
VISION = AriaConfig.from_hf(CASE).vision


def test_the_published_model_has_the_parameters_that_its_card_claims():
    config = AriaConfig.from_hf(HUB)
    assert config == AriaConfig.from_hf(json.loads(FULL.read_text()))
    module = nnx.eval_shape(lambda: Aria(config, rngs=nnx.Rngs(0), with_experts=False))
    dense = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(module)))
    experts = len(config.text.moe_layers) * config.text.num_experts * config.text.expert_layout(np.float32).size
    assert dense + experts == pytest.approx(25.3e9, rel=0.002)
    assert config.text.shared_expert_intermediate_size == 3328
    assert config.vision.image_tokens(np.array([1, 70, 70])) == 256


def test_either_name_of_the_image_token():
    values = {key: value for key, value in CASE.items() if key != "image_token_index"}
    assert AriaConfig.from_hf(values | {"image_token_id": 7}).image_token_id == 7
    assert AriaConfig.from_hf(values).image_token_id == 9


def test_experts_are_gated_by_silu_whatever_the_shared_one_is():
    text = AriaConfig.from_hf(CASES["aria_top_1_tied"]).text
    assert (text.hidden_act, text.expert_kind.activation) == ("gelu", "silu")


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("", "projector_patch_to_query_dict", {}),
        ("", "projector_patch_to_query_dict", {"nine": 2}),
        ("", "projector_patch_to_query_dict", [9]),
        ("", "max_value_projector_patch_to_query_dict", 2),
        ("", "vision_feature_layer", [-2, -1]),
        ("", "vision_feature_layer", 4),
        ("", "vision_feature_layer", -5),
        ("", "image_token_index", 48),
        ("", "image_token_index", -1),
        ("", "tie_word_embeddings", 1),
        ("", "model_type", "llava"),
        ("text_config", "model_type", "aria_moe_lm"),
        ("text_config", "moe_topk", 9),
        ("text_config", "moe_num_experts", 0),
        ("text_config", "moe_num_shared_experts", "two"),
        ("text_config", "mlp_bias", True),
        ("text_config", "num_key_value_heads", 3),
        ("vision_config", "model_type", "siglip_vision_model"),
        ("vision_config", "num_attention_heads", 3),
        ("vision_config", "patch_size", 25),
        ("vision_config", "hidden_act", "made_up"),
        ("vision_config", "layer_norm_eps", 0),
        ("vision_config", "image_size", [24, 20]),
    ],
)
def test_mistakes_in_the_config_are_named(section, key, value):
    changed = {section: CASE[section] | {key: value}} if section else {key: value}
    with pytest.raises(InputError, match=key) as caught:
        AriaConfig.from_hf(CASE | changed)
    assert "\n" not in str(caught.value)


def test_a_config_without_a_section_is_refused():
    with pytest.raises(InputError, match="text_config is missing"):
        AriaConfig.from_hf({key: value for key, value in CASE.items() if key != "text_config"})


def images(count=2, side=12):
    rng = np.random.default_rng(0)
    return rng.normal(size=(count, 3, side, side)).astype(np.float32), np.ones((count, side, side), bool)


def test_patches_are_rows_and_padding_is_marked():
    pixels, mask = images()
    mask[1, 5:] = False  # the second row of patches is padding in part
    patches, grids = pack(pixels, mask, channels=3, patch_size=4)
    assert grids.tolist() == [[1, 3, 3]] * 2
    np.testing.assert_array_equal(patches[4, :-1], pixels[0, :, 4:8, 4:8].reshape(-1))
    assert patches[:, -1].reshape(2, 3, 3).tolist() == [[[0] * 3] * 3, [[0] * 3, [0] * 3, [1] * 3]]
    np.testing.assert_array_equal(pack(pixels, None, channels=3, patch_size=4)[0][:, -1], np.zeros(18))


def test_padding_is_left_out_and_what_is_seen_spreads_over_the_table():
    pixels, mask = images()
    mask[1, 4:] = False
    laid_out, where = vision_inputs(VISION, *pack(pixels, mask, channels=3, patch_size=4))
    assert laid_out.shape[::2] == (2, 48)
    assert where["valid"].sum(axis=1).tolist() == [9, 3]
    assert where["table"][0, :9].tolist() == [0, 2, 4, 12, 14, 16, 24, 26, 28]
    assert where["table"][1, :3].tolist() == [0, 2, 4]
    assert where["tokens"].tolist() == [0, 1, 2, 5, 6, 7]


def test_positions_that_rounding_decides():
    """As torch gives them for tables of 70 (the published model) and 19 positions to a side."""
    assert _axis(70, 70, 70).tolist() == list(range(70))
    assert _axis(35, 35, 70).tolist() == list(range(0, 70, 2))
    assert _axis(19, 19, 19).tolist() == [*range(12), 11, *range(13, 19)]


@pytest.mark.parametrize(
    ("pixels", "mask", "message"),
    [
        (np.zeros((9, 48)), None, "pixel_values: want"),
        (np.zeros((1, 4, 12, 12)), None, "pixel_values: want"),
        (np.zeros((2, 3, 12, 12)), np.ones((1, 12, 12)), "pixel_mask: want"),
        (np.zeros((1, 3, 12, 12)), np.ones((1, 12, 8)), "pixel_mask: want"),
        (np.zeros((1, 3, 12, 12)), np.zeros((1, 12, 12)), "all padding"),
        (np.zeros((1, 3, 16, 16)), None, "an image of 16 patches: projector_patch_to_query_dict"),
        (np.zeros((1, 3, 2, 2)), None, "an image of 0 patches"),
    ],
)
def test_images_that_do_not_fit(pixels, mask, message):
    with pytest.raises(InputError, match=message) as caught:
        vision_inputs(VISION, *VISION.pack(pixels, None, mask))
    assert "\n" not in str(caught.value)


def test_patches_and_grids_must_agree():
    patches, grids = pack(*images(), channels=3, patch_size=4)
    with pytest.raises(InputError, match="pixel_values has shape"):
        vision_inputs(VISION, patches[1:], grids)


@pytest.mark.parametrize(("tokens", "count"), [(2, 1), (3, 0), (3, 2), (6, 1), (0, 1)])
def test_tokens_and_images_must_agree(tokens, count):
    config = AriaConfig.from_hf(CASE)
    ids = np.array([[5, *[1] * tokens, 6]])
    grids = np.array([[1, 3, 3]] * count) if count else None
    with pytest.raises(InputError, match="image"):
        config.positions(ids, np.array([tokens + 2]), grids)


def test_the_plan_holds_the_largest_image_that_may_come():
    config = AriaConfig.from_hf(HUB)
    assert config.vision.most_patches(256) == 4900
    assert config.vision.most_patches(128) >= 1225
    assert config.vision.most_tokens(4900) >= 256
    many, one = (config.vision.activation_bytes(count * 1225, 1225, 2) for count in (4, 1))
    assert one < many < config.vision.activation_bytes(4900, 4900, 2)
    assert config.vision.activation_bytes(0, 0, 2) == 0
