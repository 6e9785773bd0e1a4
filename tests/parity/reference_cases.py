"""Small configs of every family and prompts that the parity checks compare, one entry per way in which configs differ.

Plain data, read by the reference side (torch and transformers) and by ours. Axes: E experts, D model width, F expert
width.
"""

from typing import Any

import numpy as np

IMAGE, VIDEO, START, END = 1, 2, 3, 4
FIRST_WORD = 5  # smaller ids are special

_TEXT = {
    "vocab_size": 48,
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 20,
    "intermediate_size": 28,
    "max_position_embeddings": 256,
    "rope_parameters": {
        "rope_type": "default",
        "rope_theta": 10_000.0,
        "mrope_section": [2, 1, 1],
        "mrope_interleaved": True,
    },
}
_VISION = {
    "depth": 3,
    "hidden_size": 16,
    "intermediate_size": 20,
    "num_heads": 2,
    "patch_size": 4,
    "temporal_patch_size": 2,
    "spatial_merge_size": 2,
    "num_position_embeddings": 25,
    "deepstack_visual_indexes": [0, 2],
}


def _case(text: dict[str, Any] | None = None, vision: dict[str, Any] | None = None, tied: bool = False) -> dict:
    text_config = _TEXT | (text or {})
    vision_config = _VISION | {"out_hidden_size": text_config["hidden_size"]} | (vision or {})
    text_config["tie_word_embeddings"] = tied
    return {
        "model_type": "qwen3_vl_moe",
        "text_config": text_config,
        "vision_config": vision_config,
        "image_token_id": IMAGE,
        "video_token_id": VIDEO,
        "vision_start_token_id": START,
        "vision_end_token_id": END,
        "tie_word_embeddings": tied,
    }


_PLAIN = {
    "vocab_size": 48,
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_experts_per_tok": 2,
    "max_position_embeddings": 256,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
# num_local_experts or num_experts, intermediate_size or moe_intermediate_size: as the family calls them.
_FAMILIES = {
    "mixtral": {"num_local_experts": 8, "intermediate_size": 12},
    "olmoe": {"num_experts": 8, "intermediate_size": 12},
    "qwen2_moe": {
        "num_experts": 8,
        "moe_intermediate_size": 12,
        "intermediate_size": 20,
        "shared_expert_intermediate_size": 16,
    },
    "qwen3_moe": {"num_experts": 8, "moe_intermediate_size": 12, "intermediate_size": 20, "head_dim": 8},
}


def _plain(family: str, rope: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    """A text model."""
    rope_parameters = {"rope_type": "default", "rope_theta": 10_000.0} | (rope or {})
    return {"model_type": family} | _PLAIN | _FAMILIES[family] | {"rope_parameters": rope_parameters} | changes


def _switch(**changes: Any) -> dict[str, Any]:
    """An encoder-decoder."""
    sizes = {"vocab_size": 48, "d_model": 24, "d_kv": 6, "d_ff": 12, "num_heads": 4, "num_experts": 8}
    layers = dict.fromkeys(("num_layers", "num_decoder_layers"), 4)
    sparse = dict.fromkeys(("num_sparse_encoder_layers", "num_sparse_decoder_layers"), 2)
    tokens = {"decoder_start_token_id": 0, "bos_token_id": None, "eos_token_id": None, "pad_token_id": 0}
    return {"model_type": "switch_transformers"} | sizes | layers | sparse | tokens | changes


def _aria(text: dict[str, Any] | None = None, vision: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    """A text model's sizes behind another tower; two sizes of images, the larger in the batch "image"."""
    sizes = {key: value for key, value in _PLAIN.items() if key != "num_experts_per_tok"}
    experts = {"intermediate_size": 12, "moe_num_experts": 8, "moe_topk": 2, "moe_num_shared_experts": 2}
    tower = {"hidden_size": 16, "intermediate_size": 20, "num_hidden_layers": 3, "num_attention_heads": 2}
    tower |= {"image_size": 24, "patch_size": 4}
    return {
        "model_type": "aria",
        "text_config": {"model_type": "aria_text"} | sizes | experts | (text or {}),
        "vision_config": {"model_type": "idefics3_vision"} | tower | (vision or {}),
        "projector_patch_to_query_dict": {"9": 3, "36": 5},
        "image_token_index": IMAGE,
    } | changes


def _rope(theta: float, section: list[int]) -> dict[str, Any]:
    return {"rope_parameters": _TEXT["rope_parameters"] | {"rope_theta": theta, "mrope_section": section}}


CASES: dict[str, dict[str, Any]] = {
    "base": _case(),
    # D == 2F: the two layouts of gate_up on disk have one shape.
    "top_1_no_deepstack": _case(
        {"num_experts": 4, "num_experts_per_tok": 1, "num_key_value_heads": 4, "moe_intermediate_size": 12},
        {"deepstack_visual_indexes": []},
    ),
    # F == D: the two layouts of down have one shape.
    "many_experts": _case(
        {"num_experts": 32, "num_experts_per_tok": 8, "num_key_value_heads": 1, "moe_intermediate_size": 24},
        {"depth": 1, "deepstack_visual_indexes": [0]},
    ),
    "dense_layers": _case({"num_hidden_layers": 5, "mlp_only_layers": [0, 3]}, {"deepstack_visual_indexes": [1]}),
    "sparse_step": _case({"num_hidden_layers": 4, "decoder_sparse_step": 2, "attention_bias": True}),
    "tied": _case({"rms_norm_eps": 1e-3, "num_experts_per_tok": 3}, tied=True),
    "no_merge": _case(
        {"head_dim": 12, **_rope(5_000_000.0, [2, 3, 1])},
        {"patch_size": 6, "temporal_patch_size": 1, "spatial_merge_size": 1, "hidden_size": 32, "num_heads": 4},
    ),
    # norm_topk_prob: no family member reads it, weights are always renormalised.
    "merge_3": _case(
        {"head_dim": 16, "norm_topk_prob": False, **_rope(500_000.0, [3, 3, 2])},
        {"patch_size": 2, "spatial_merge_size": 3, "depth": 4, "deepstack_visual_indexes": [3, 1]},
    ),
    "stretched": _case(
        {
            "hidden_act": "gelu_pytorch_tanh",
            "rope_parameters": _TEXT["rope_parameters"]
            | {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 8},
        }
    ),
    "mixtral": _plain("mixtral"),
    "mixtral_window": _plain(
        "mixtral",
        {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32,
        },
        sliding_window=4,
        head_dim=12,
    ),
    "mixtral_tied_top_1": _plain(
        "mixtral",
        {"rope_type": "proportional", "factor": 2.0, "partial_rotary_factor": 0.5},
        num_experts_per_tok=1,
        num_key_value_heads=4,
        tie_word_embeddings=True,
        hidden_act="gelu",
    ),
    "olmoe": _plain("olmoe", num_key_value_heads=4),
    "olmoe_clip": _plain("olmoe", clip_qkv=0.7, norm_topk_prob=True, attention_bias=True, num_hidden_layers=2),
    "olmoe_many_experts": _plain(
        "olmoe",
        {"rope_type": "dynamic", "factor": 4.0},
        num_experts=32,
        num_experts_per_tok=8,
        num_key_value_heads=1,
        tie_word_embeddings=True,
    ),
    "qwen2_moe": _plain("qwen2_moe"),
    "qwen2_moe_window": _plain(
        "qwen2_moe",
        {"rope_type": "linear", "factor": 4.0},
        num_hidden_layers=4,
        mlp_only_layers=[1],
        use_sliding_window=True,
        sliding_window=4,
        max_window_layers=3,
    ),
    "qwen2_moe_no_bias": _plain(
        "qwen2_moe",
        qkv_bias=False,
        norm_topk_prob=True,
        tie_word_embeddings=True,
        layer_types=["full_attention", "sliding_attention", "sliding_attention"],
        use_sliding_window=True,
        sliding_window=3,
    ),
    "qwen3_moe": _plain("qwen3_moe", norm_topk_prob=True),
    "qwen3_moe_stretched": _plain(
        "qwen3_moe",
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 8, "rope_theta": 1_000_000.0},
        num_hidden_layers=4,
        decoder_sparse_step=2,
        head_dim=10,
    ),
    "qwen3_moe_window": _plain(
        "qwen3_moe",
        {
            "rope_type": "yarn",
            "factor": 2.0,
            "original_max_position_embeddings": 16,
            "mscale": 0.8,
            "mscale_all_dim": 0.5,
            "truncate": False,
        },
        attention_bias=True,
        tie_word_embeddings=True,
        use_sliding_window=True,
        sliding_window=5,
        num_experts_per_tok=3,
    ),
    "switch": _switch(),
    # Every layer is sparse, tokens are dropped, relative positions are far.
    "switch_small_capacity": _switch(
        expert_capacity=2,
        num_experts=4,
        num_layers=3,  # the reference's cache has no place for a decoder of more layers than the encoder
        num_decoder_layers=2,
        num_sparse_encoder_layers=1,
        relative_attention_num_buckets=8,
        relative_attention_max_distance=10,
        router_bias=True,
    ),
    "switch_untied": _switch(
        tie_word_embeddings=False,
        num_sparse_encoder_layers=0,
        num_decoder_layers=3,
        num_sparse_decoder_layers=1,
        dense_act_fn="gelu_new",
        layer_norm_epsilon=1e-3,
        decoder_start_token_id=3,
    ),
    "aria": _aria(),
    "aria_top_1_tied": _aria(
        {"moe_topk": 1, "moe_num_shared_experts": 1, "num_key_value_heads": 4, "hidden_act": "gelu"},
        vision_feature_layer=-2,
        tie_word_embeddings=True,
    ),
    "aria_shared_3": _aria(
        {
            "moe_num_experts": 16,
            "moe_topk": 3,
            "moe_num_shared_experts": 3,
            "attention_bias": True,
            "rms_norm_eps": 1e-3,
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 500_000.0,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 32,
            },
        },
        {"hidden_act": "gelu", "layer_norm_eps": 1e-3},
        vision_feature_layer=1,
        max_value_projector_patch_to_query_dict=7,
    ),
    # 19 positions to a side: patches fall on boundaries between them, where rounding decides. Images are larger than
    # the table.
    "aria_boundaries": _aria(
        {"num_hidden_layers": 2, "rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 5e6}},
        {"image_size": 19, "patch_size": 1, "num_hidden_layers": 1, "num_attention_heads": 4},
        projector_patch_to_query_dict={"361": 1, "484": 6},
    ),
    "switch_dense_decoder": _switch(num_sparse_decoder_layers=0, expert_capacity=1, num_layers=6, d_kv=5),
}

# Cases and batches whose checkpoints and arrays are committed in tests/goldens.
GOLDENS = {
    "base": ["text", "ragged"],
    "dense_layers": ["ragged"],
    "no_merge": ["ragged"],
    "mixtral_window": ["ragged"],
    "olmoe_clip": ["ragged"],
    "qwen2_moe_window": ["ragged"],
    "qwen3_moe_stretched": ["ragged"],
    "switch_small_capacity": ["ragged"],
    "aria": ["image", "ragged"],
}

# A prompt is a list of parts: a number of words, or the grid of an image in image tokens (frames, rows, columns).
BATCHES: dict[str, list[list[int | tuple[int, int, int]]]] = {
    "text": [[9]],
    "image": [[3, (1, 2, 3), 4]],
    "ragged": [[5], [2, (1, 3, 2), 3, (1, 1, 4), (2, 2, 1), 4], [1], [(1, 2, 2), 6]],
}


def batches_of(case: str) -> list[str]:
    """Batches that a model can read: those with images only if it sees."""
    sees = "vision_config" in CASES[case]
    return [name for name in BATCHES if sees or name != "image"]


def prompts(config: dict[str, Any], batch: str, seed: int) -> tuple[list[np.ndarray], dict[str, np.ndarray]]:
    """Token ids of each prompt, and the arrays of all images as the family's processor names them, of any number of
    images, 0 too. A model that does not see reads five words in place of an image."""
    rng = np.random.default_rng(seed)
    sees = "vision_config" in config
    tokens_of = _aria_tokens(config, batch) if config["model_type"] == "aria" else np.prod
    vocabulary = config.get("text_config", config)["vocab_size"]
    ids, grids = [], []
    for parts in BATCHES[batch]:
        tokens: list[int] = []
        for part in parts:
            if isinstance(part, int) or not sees:
                tokens += rng.integers(FIRST_WORD, vocabulary, part if isinstance(part, int) else 5).tolist()
            else:
                tokens += [START, *[IMAGE] * int(tokens_of(part)), END]
                grids.append(part)
        ids.append(np.array(tokens, np.int64))
    if config["model_type"] == "aria":
        return ids, _aria_images(config, batch, grids, rng)
    merge, patch_dim = 1, 0
    if sees:
        vision = config["vision_config"]
        merge = vision["spatial_merge_size"]
        patch_dim = 3 * vision["temporal_patch_size"] * vision["patch_size"] ** 2
    grid = np.array(grids, np.int64).reshape(-1, 3) * [1, merge, merge]
    pixels = rng.normal(size=(int(grid.prod(axis=1).sum()), patch_dim)).astype(np.float32)
    return ids, {"pixel_values": pixels, "image_grid_thw": grid}


def _aria_size(config: dict[str, Any], batch: str) -> tuple[int, int]:
    """Patches and tokens of the images of a batch: the most, or the least that the model knows."""
    sizes = sorted((int(patches), tokens) for patches, tokens in config["projector_patch_to_query_dict"].items())
    return sizes[-1 if batch == "image" else 0]


def _aria_tokens(config: dict[str, Any], batch: str) -> Any:
    """A part of a prompt to its tokens: frames are crops of one image."""
    return lambda part: part[0] * _aria_size(config, batch)[1]


def _aria_images(config: dict[str, Any], batch: str, parts: list[Any], rng: np.random.Generator) -> dict:
    """Squares, padded where rows or columns are fewer, not always by whole patches."""
    side = round(_aria_size(config, batch)[0] ** 0.5) * config["vision_config"]["patch_size"]
    crops = [part[1:] for part in parts for _ in range(part[0])]
    mask = np.zeros((len(crops), side, side), bool)
    for seen, (rows, columns) in zip(mask, crops, strict=True):
        longer = max(rows, columns)
        seen[: -(-side * rows // longer), : -(-side * columns // longer)] = True
    return {"pixel_values": rng.normal(size=(len(crops), 3, side, side)).astype(np.float32), "pixel_mask": mask}
