"""config.json in its spellings: the published 30B-A3B, transformers 4.57 and 5.x, and mistakes named by their key."""

import copy
import json
from pathlib import Path

import pytest

from expertflow_jax.errors import InputError
from expertflow_jax.models.qwen3_vl_config import Qwen3VLMoeConfig

GOLDEN = json.loads((Path(__file__).parents[1] / "goldens" / "models" / "base" / "config.json").read_text())
# Qwen/Qwen3-VL-30B-A3B-Instruct, as transformers 4.57 spells it.
PUBLISHED = {
    "model_type": "qwen3_vl_moe",
    "image_token_id": 151655,
    "video_token_id": 151656,
    "vision_start_token_id": 151652,
    "vision_end_token_id": 151653,
    "tie_word_embeddings": False,
    "text_config": {
        "attention_bias": False,
        "decoder_sparse_step": 1,
        "head_dim": 128,
        "hidden_act": "silu",
        "hidden_size": 2048,
        "intermediate_size": 6144,
        "max_position_embeddings": 262144,
        "mlp_only_layers": [],
        "model_type": "qwen3_vl_moe_text",
        "moe_intermediate_size": 768,
        "norm_topk_prob": True,
        "num_attention_heads": 32,
        "num_experts": 128,
        "num_experts_per_tok": 8,
        "num_hidden_layers": 48,
        "num_key_value_heads": 4,
        "rms_norm_eps": 1e-06,
        "rope_scaling": {"mrope_interleaved": True, "mrope_section": [24, 20, 20], "rope_type": "default"},
        "rope_theta": 5000000,
        "vocab_size": 151936,
    },
    "vision_config": {
        "deepstack_visual_indexes": [8, 16, 24],
        "depth": 27,
        "hidden_act": "gelu_pytorch_tanh",
        "hidden_size": 1152,
        "in_channels": 3,
        "intermediate_size": 4304,
        "model_type": "qwen3_vl_moe",
        "num_heads": 16,
        "num_position_embeddings": 2304,
        "out_hidden_size": 2048,
        "patch_size": 16,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
    },
}


def test_the_published_model():
    config = Qwen3VLMoeConfig.from_hf(PUBLISHED)
    assert (config.text.num_hidden_layers, config.text.num_experts, config.text.num_experts_per_tok) == (48, 128, 8)
    assert config.text.moe_layers == tuple(range(48))
    assert config.text.rope_theta == 5e6
    assert config.text.mrope_section == (24, 20, 20)
    assert config.vision.deepstack_visual_indexes == (8, 16, 24)
    assert config.vision.patch_dim == 1536


@pytest.mark.parametrize("values", [PUBLISHED, GOLDEN])
def test_written_and_read_again(values):
    config = Qwen3VLMoeConfig.from_hf(values)
    assert Qwen3VLMoeConfig.from_hf(json.loads(json.dumps(config.to_hf()))) == config


def test_both_spellings_of_the_rotation():
    old = copy.deepcopy(GOLDEN)
    rope = old["text_config"].pop("rope_parameters")
    old["text_config"]["rope_theta"] = rope.pop("rope_theta")
    old["text_config"]["rope_scaling"] = rope
    assert Qwen3VLMoeConfig.from_hf(old) == Qwen3VLMoeConfig.from_hf(GOLDEN)


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("text_config", "hidden_size", None),
        ("text_config", "num_experts_per_tok", "two"),
        ("text_config", "num_experts_per_tok", 99),
        ("text_config", "num_key_value_heads", 3),
        ("text_config", "hidden_act", "made_up"),
        ("text_config", "mlp_only_layers", [0, 1, 2]),
        ("text_config", "rope_parameters", {"rope_type": "yarn"}),
        ("vision_config", "num_position_embeddings", 24),
        ("vision_config", "deepstack_visual_indexes", [9]),
        ("vision_config", "out_hidden_size", 5),
        ("vision_config", "depth", -1),
        (None, "image_token_id", 10_000),
        (None, "text_config", None),
        (None, "model_type", "qwen2_vl"),
    ],
)
def test_mistakes_are_named(section, key, value):
    values = copy.deepcopy(GOLDEN)
    where = values[section] if section else values
    where[key] = value
    with pytest.raises(InputError, match=key) as caught:
        Qwen3VLMoeConfig.from_hf(values)
    assert "\n" not in str(caught.value)
