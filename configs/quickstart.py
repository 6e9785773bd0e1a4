"""The study that the README's first command runs: every policy, scheduler and miss policy at up to four sizes.

python -m eval.study --config=configs/quickstart.py --workdir=runs/quickstart
"""

import ml_collections

from configs import study_base

FRACTIONS = (0.125, 0.25, 0.5, 0.75)


def get_config() -> ml_collections.ConfigDict:
    """Returns the quickstart's config."""
    config = study_base.get_config()
    grid = study_base.grid
    half = (0.25, 0.5)
    config.grids.blocks = grid(("cache_moe", "expertflow", "oracle"), cache_fractions=half, batches_per_block=(8,))
    config.grids.blocks_scheduled = grid(  # 8 batches of 8 are the scheduler's whole window, 2 a quarter of it
        ("expertflow",), ("fifo", "greedy"), cache_fractions=half, batches_per_block=(2, 8)
    )
    config.grids.cache_moe_greedy = grid(("cache_moe",), ("greedy",), cache_fractions=FRACTIONS)
    config.grids.lossy = grid(("cache_moe", "expertflow"), ("fifo", "greedy"), ("drop", "substitute"), FRACTIONS)
    config.grids.policies = grid(
        ("resident", "on_demand", "cache_moe", "expertflow", "oracle"), cache_fractions=FRACTIONS
    )
    config.grids.literature = grid(("class_lru", "lfu", "speculative", "moe_infinity"), cache_fractions=half)
    config.grids.rings = grid(
        ("se_moe", "pregated", "pregated_forecast"), cache_fractions=(0.5,)
    )  # two layers at least
    config.grids.schedulers = grid(("expertflow",), ("random", "kmeans", "greedy"), cache_fractions=FRACTIONS)
    return config
