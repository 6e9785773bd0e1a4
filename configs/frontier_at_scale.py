"""The frontier's miss policies on full-size models behind a GPU's link, on the virtual clock: bytes and speed alone.

python -m eval.simulate --config=configs/frontier_at_scale.py --workdir=runs/frontier_at_scale
"""

import ml_collections

from configs.frontier import CAREFUL

QWEN, MIXTRAL = "qwen3_vl_30b_a3b", "mixtral_8x7b"
OTHERS = ("drop", "substitute", "fewer_experts(top_k=1)", "defer(experts=4)", "low_precision(bits=4, t1=0.6, t2=0.9)")


def grid(models, cache_fractions, variants, miss_policies):
    """One group of cells: every combination of its values; sizes are slots / experts."""
    return ml_collections.ConfigDict(
        {
            "models": tuple(models),
            "cache_fractions": tuple(cache_fractions),
            "variants": tuple(variants),
            "miss_policies": tuple(miss_policies),
        }
    )


def get_config() -> ml_collections.ConfigDict:
    """Returns the config."""
    config = ml_collections.ConfigDict()
    config.study = "lossy"
    config.seed = 0
    config.model = "digit_scenes_moe"  # the trained model, whose routing is recorded and carried to the full-size ones
    config.new_tokens = 3  # decode steps after each prompt
    config.sequences = 32
    config.batch_size = 8
    config.gpu = "rtx4090"  # compute and link at published peaks
    config.models = ml_collections.ConfigDict({name: f"configs/models/{name}" for name in (QWEN, MIXTRAL)})
    config.grids = ml_collections.ConfigDict(sort_keys=False)
    config.grids.all = grid((QWEN, MIXTRAL), (0.25, 0.5), ("cache_moe",), ("wait", *CAREFUL, *OTHERS))
    return config
