"""config.json of the text families: published ones, every variation of the parity cases, mistakes and what they say."""

import json
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx

sys.path.insert(0, str(Path(__file__).parents[1] / "parity"))
from reference_cases import CASES

from expertflow_jax.checkpoints.families import FAMILIES, family_of
from expertflow_jax.errors import InputError

# As the hub has them, and how many parameters their cards claim.
PUBLISHED = {
    "mistralai/Mixtral-8x7B-v0.1": (
        46.7e9,
        {
            "model_type": "mixtral",
            "hidden_act": "silu",
            "hidden_size": 4096,
            "intermediate_size": 14336,
            "max_position_embeddings": 32768,
            "num_attention_heads": 32,
            "num_experts_per_tok": 2,
            "num_hidden_layers": 32,
            "num_key_value_heads": 8,
            "num_local_experts": 8,
            "rms_norm_eps": 1e-05,
            "rope_theta": 1000000.0,
            "sliding_window": None,
            "tie_word_embeddings": False,
            "vocab_size": 32000,
        },
    ),
    "Qwen/Qwen1.5-MoE-A2.7B": (
        14.3e9,
        {
            "model_type": "qwen2_moe",
            "decoder_sparse_step": 1,
            "hidden_act": "silu",
            "hidden_size": 2048,
            "intermediate_size": 5632,
            "max_position_embeddings": 8192,
            "max_window_layers": 21,
            "moe_intermediate_size": 1408,
            "norm_topk_prob": False,
            "num_attention_heads": 16,
            "num_experts": 60,
            "num_experts_per_tok": 4,
            "num_hidden_layers": 24,
            "num_key_value_heads": 16,
            "rms_norm_eps": 1e-06,
            "rope_theta": 1000000.0,
            "shared_expert_intermediate_size": 5632,
            "sliding_window": 32768,
            "tie_word_embeddings": False,
            "use_sliding_window": False,
            "vocab_size": 151936,
        },
    ),
    "Qwen/Qwen3-30B-A3B": (
        30.5e9,
        {
            "model_type": "qwen3_moe",
            "attention_bias": False,
            "decoder_sparse_step": 1,
            "head_dim": 128,
            "hidden_act": "silu",
            "hidden_size": 2048,
            "intermediate_size": 6144,
            "max_position_embeddings": 40960,
            "max_window_layers": 48,
            "mlp_only_layers": [],
            "moe_intermediate_size": 768,
            "norm_topk_prob": True,
            "num_attention_heads": 32,
            "num_experts": 128,
            "num_experts_per_tok": 8,
            "num_hidden_layers": 48,
            "num_key_value_heads": 4,
            "rms_norm_eps": 1e-06,
            "rope_scaling": None,
            "rope_theta": 1000000.0,
            "sliding_window": None,
            "tie_word_embeddings": False,
            "use_sliding_window": False,
            "vocab_size": 151936,
        },
    ),
    "google/switch-base-8": (
        0.62e9,
        {
            "model_type": "switch_transformers",
            "d_ff": 3072,
            "d_kv": 64,
            "d_model": 768,
            "decoder_sparse_step": 2,
            "decoder_start_token_id": 0,
            "dense_act_fn": "relu",
            "encoder_sparse_step": 2,
            "expert_capacity": 64,
            "feed_forward_proj": "relu",
            "is_encoder_decoder": True,
            "is_gated_act": False,
            "layer_norm_epsilon": 1e-06,
            "num_decoder_layers": 12,
            "num_experts": 8,
            "num_heads": 12,
            "num_layers": 12,
            "num_selected_experts": 1,
            "num_sparse_decoder_layers": 6,
            "num_sparse_encoder_layers": 6,
            "relative_attention_max_distance": 128,
            "relative_attention_num_buckets": 32,
            "router_bias": False,
            "router_dtype": "float32",
            "router_ignore_padding_tokens": False,
            "router_type": "tokens_masked",
            "vocab_size": 32128,
        },
    ),
    "allenai/OLMoE-1B-7B-0924": (
        6.9e9,
        {
            "model_type": "olmoe",
            "attention_bias": False,
            "clip_qkv": None,
            "hidden_act": "silu",
            "hidden_size": 2048,
            "intermediate_size": 1024,
            "max_position_embeddings": 4096,
            "norm_topk_prob": False,
            "num_attention_heads": 16,
            "num_experts": 64,
            "num_experts_per_tok": 8,
            "num_hidden_layers": 16,
            "num_key_value_heads": 16,
            "rms_norm_eps": 1e-05,
            "rope_scaling": None,
            "rope_theta": 10000.0,
            "tie_word_embeddings": False,
            "vocab_size": 50304,
        },
    ),
}


def read(values):
    return FAMILIES[values["model_type"]].config.from_hf(values)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_models_have_the_parameters_that_their_cards_claim(name):
    parameters, values = PUBLISHED[name]
    config = read(values)
    assert config.vision is None
    module = nnx.eval_shape(
        lambda: family_of(config).module(config, rngs=nnx.Rngs(0), dtype=np.float32, with_experts=False)
    )
    dense = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(module)))
    experts = len(config.text.moe_layers) * config.text.num_experts * config.text.expert_layout(np.float32).size
    assert dense + experts == pytest.approx(parameters, rel=0.005)


@pytest.mark.parametrize("case", CASES)
def test_written_and_read_again(case):
    config = read(CASES[case])
    assert read(json.loads(json.dumps(config.to_hf()))) == config


def test_every_variation_is_read_from_the_config():
    window, qwen2, olmoe = (read(CASES[case]).text for case in ("mixtral_window", "qwen2_moe_window", "olmoe_clip"))
    assert [window.window(layer) for layer in range(3)] == [4, 4, 4]
    assert window.rope_scaling.kind == "llama3"
    assert [qwen2.window(layer) for layer in range(4)] == [4, 0, 4, 0]
    assert qwen2.moe_layers == (0, 2, 3)
    assert (qwen2.qkv_bias, qwen2.o_bias, qwen2.norm_topk_prob, qwen2.shared_expert_gate) == (True, False, False, True)
    assert (olmoe.clip_qkv, olmoe.qk_norm, olmoe.o_bias) == (0.7, "projection", True)


@pytest.mark.parametrize(
    ("case", "key", "value"),
    [
        ("mixtral", "hidden_size", None),
        ("mixtral", "num_local_experts", 0),
        ("mixtral", "sliding_window", -1),
        ("mixtral", "hidden_act", "made_up"),
        ("mixtral", "tie_word_embeddings", "yes"),
        ("olmoe", "clip_qkv", -1.0),
        ("olmoe", "head_dim", 8),
        ("qwen2_moe", "layer_types", ["full_attention"]),
        ("qwen2_moe", "sliding_window", {"layer_types": ["sliding_attention"] * 3}),
        ("qwen2_moe", "shared_expert_intermediate_size", "wide"),
        ("qwen3_moe", "mlp_only_layers", [0, 1, 2]),
        ("qwen3_moe", "rope_type", {"rope_parameters": {"rope_type": "longrope", "factor": 2.0}}),
        ("qwen3_moe", "rope_type", {"rope_parameters": {"rope_type": ["yarn"]}}),
        ("qwen3_moe", "factor", {"rope_parameters": {"rope_type": "yarn"}}),
        ("qwen3_moe", "low_freq_factor", {"rope_parameters": {"rope_type": "llama3", "factor": 2.0}}),
        (
            "qwen3_moe",
            "partial_rotary_factor",
            {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "partial_rotary_factor": 0.5}},
        ),
        ("qwen3_moe", "model_type", "mixtral"),
        ("switch", "d_model", "wide"),
        ("switch", "dense_act_fn", "gated-gelu"),
        ("switch", "is_gated_act", True),
        ("switch", "router_dtype", "bfloat16"),
        ("switch", "expert_capacity", 0),
        ("switch", "num_sparse_encoder_layers", 5),
        ("switch", "decoder_sparse_step", 0),
        ("switch", "decoder_start_token_id", 48),
        ("switch", "relative_attention_max_distance", 16),
        (
            "switch",
            "num_sparse_decoder_layers",
            {"num_layers": 1, "num_sparse_encoder_layers": 1, "encoder_sparse_step": 2}
            | {"num_decoder_layers": 1, "num_sparse_decoder_layers": 1, "decoder_sparse_step": 2},
        ),
    ],
)
def test_mistakes_are_named(case, key, value):
    changed = value if isinstance(value, dict) else {key: value}
    with pytest.raises(InputError, match=key) as caught:
        FAMILIES[CASES[case]["model_type"]].config.from_hf(CASES[case] | changed)
    assert "\n" not in str(caught.value)
