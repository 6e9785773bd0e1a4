"""Small Qwen3-VL-MoE configs and prompts that the parity checks compare, one entry per way in which configs differ.

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
        "text_config": text_config,
        "vision_config": vision_config,
        "image_token_id": IMAGE,
        "video_token_id": VIDEO,
        "vision_start_token_id": START,
        "vision_end_token_id": END,
        "tie_word_embeddings": tied,
    }


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
}

# Cases and batches whose checkpoints and arrays are committed in tests/goldens.
GOLDENS = {"base": ["text", "ragged"], "dense_layers": ["ragged"], "no_merge": ["ragged"]}

# A prompt is a list of parts: a number of words, or the grid of an image in image tokens (frames, rows, columns).
BATCHES: dict[str, list[list[int | tuple[int, int, int]]]] = {
    "text": [[9]],
    "image": [[3, (1, 2, 3), 4]],
    "ragged": [[5], [2, (1, 3, 2), 3, (1, 1, 4), (2, 2, 1), 4], [1], [(1, 2, 2), 6]],
}


def prompts(config: dict[str, Any], batch: str, seed: int) -> tuple[list[np.ndarray], np.ndarray, np.ndarray]:
    """Token ids of each prompt, pixel values float32 [P, patch_dim] and grids int64 [images, 3] (P and images may be
    0)."""
    rng = np.random.default_rng(seed)
    vision = config["vision_config"]
    merge = vision["spatial_merge_size"]
    patch_dim = 3 * vision["temporal_patch_size"] * vision["patch_size"] ** 2
    ids, grids = [], []
    for parts in BATCHES[batch]:
        tokens: list[int] = []
        for part in parts:
            if isinstance(part, int):
                tokens += rng.integers(FIRST_WORD, config["text_config"]["vocab_size"], part).tolist()
            else:
                frames, rows, columns = part
                tokens += [START, *[IMAGE] * (frames * rows * columns), END]
                grids.append((frames, rows * merge, columns * merge))
        ids.append(np.array(tokens, np.int64))
    grid = np.array(grids, np.int64).reshape(-1, 3)
    pixels = rng.normal(size=(int(grid.prod(axis=1).sum()), patch_dim)).astype(np.float32)
    return ids, pixels, grid
