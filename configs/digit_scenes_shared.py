"""A third model: 32 experts, top 4, beside a shared expert that every token goes through, on digit scenes.

    python -m train.moe --config=configs/digit_scenes_shared.py --workdir=runs/digit_scenes_shared

The shared expert has a gate, as in Qwen2-MoE; published models of Qwen3-VL-MoE have no shared expert. Warm start and
schedule are those of `digit_scenes_wide.py`.
"""

import ml_collections

from configs import digit_scenes_moe
from configs.digit_scenes_wide import shorten


def get_config() -> ml_collections.ConfigDict:
    """Returns the config of the model with a shared expert."""
    config = digit_scenes_moe.get_config()
    config.warm_start = "digit_scenes_moe"
    config.text.num_experts = 32
    config.text.num_experts_per_tok = 4
    config.text.shared_expert_intermediate_size = 32
    config.text.shared_expert_gate = True
    shorten(config)
    return config
