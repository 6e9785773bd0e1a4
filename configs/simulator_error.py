"""The simulator held to reality: the same windows by the clock and simulated, with costs taken in the same run.

About 8 minutes on two quiet cores; the report's sections "The simulator's error".

python -m eval.throughput --config=configs/simulator_error.py --workdir=runs/simulator_error
"""

import ml_collections

from configs.throughput_cpu import get_config as throughput_config
from configs.throughput_cpu import grid

VARIANTS = ("resident", "on_demand", "cache_moe", "lfu", "class_lru", "expertflow", "expertflow(truth)")


def get_config() -> ml_collections.ConfigDict:
    """Returns the config."""
    config = throughput_config()
    config.repeats = 5
    config.minutes = 8.0
    config.baseline_models = ()
    config.host_cost = False
    with config.unlocked():
        config.grids = ml_collections.ConfigDict(sort_keys=False)
    shapes = ("qwen3_vl_30b_a3b", "mixtral_8x7b", "switch_base_64", config.model)
    config.grids.middle = grid(shapes, batch_sizes=(8,), cache_fractions=(0.5,), variants=VARIANTS)
    config.grids.small_cache = grid(shapes, ("decode",), (8,), (0.25,), VARIANTS)
    config.grids.one_sequence = grid(shapes, ("decode",), (1,), (0.5,), VARIANTS)
    config.grids.blocks = grid(shapes[:1], ("decode",), (8,), (0.25,), VARIANTS, batches=(4,), batches_per_block=(4,))
    return config
