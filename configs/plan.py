"""The memory of Qwen3-VL-30B-A3B on cards of three sizes; any directory with a config.json, or a hub id, will do.

python -m eval.plan --config=configs/plan.py
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    """Returns the config."""
    config = ml_collections.ConfigDict()
    config.model = "configs/models/qwen3_vl_30b_a3b"
    config.predictor = ""  # a directory, or a committed name; empty: none
    config.dtype = ""  # empty: what config.json says
    config.expert_dtype = ""  # "int8" or "int4": quantised experts, lossy
    config.memory_budgets = ("8GiB", "16GiB", "24GiB")  # device memory
    config.host_memory_budget = ""  # host memory for experts, for example "32GiB"; empty: as much as they take
    config.max_batch_size = 1  # sequences at once; 0: as many as leave half of the room to experts
    config.max_tokens = 1024  # of prompt and answer
    config.max_image_tokens = 256  # of a prompt's images
    return config
