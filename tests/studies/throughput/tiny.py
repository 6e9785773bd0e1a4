"""A throughput config of two cells that takes seconds."""

import ml_collections

from configs.throughput_cpu import get_config as full_config
from configs.throughput_cpu import grid


def get_config() -> ml_collections.ConfigDict:
    config = full_config()
    config.repeats = 2
    config.sequences = 4
    config.windows = ((1, 1, 1, 2),)
    config.link = "emulated(0.2,10)"
    config.headline = ("switch_base_8", "decode", 1, 0.5)
    config.baseline_models = ()
    config.baseline_batch_sizes = (1,)
    config.host_cost = False
    variants = ("resident", "cache_moe", "expertflow", "expertflow(truth)")
    with config.unlocked():
        config.grids = ml_collections.ConfigDict(sort_keys=False)
        config.grids.one = grid(("switch_base_8",), ("decode",), (1,), (0.5, 0.0), variants)
        in_blocks = {"batches": (2,), "batches_per_block": (1, 2), "variants": ("resident", "cache_moe")}
        config.grids.blocks = grid(("switch_base_8",), ("prefill", "decode"), (1,), (0.5,), **in_blocks)
    return config
