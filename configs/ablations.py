"""Variants of the engine on the trained model's routing, and on that routing carried over to larger models' shapes.

python -m eval.simulate --config=configs/ablations.py --workdir=runs/ablations
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    """Returns the config."""
    config = ml_collections.ConfigDict()
    config.study = "ablations"
    config.seed = 0
    config.model = "digit_scenes_moe"
    config.predictor = "digit_scenes_predictor"
    config.sequences = 32  # recorded
    config.new_tokens = 3  # decode steps of each
    config.costs = "configs/costs/digit_scenes_moe_cpu.json"  # of the model itself
    config.link = "emulated(0.28,2)"  # the study's
    config.shapes = (("qwen3_vl_30b_a3b", 48), ("mixtral_8x7b", 32))  # and their layers: full size, on the GPU below
    config.gpu = "rtx4090"
    config.batch_sizes = (1, 8)
    config.cache_fractions = (0.25, 0.5)
    return config
