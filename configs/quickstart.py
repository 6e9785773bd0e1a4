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
    config.grids.cache_moe_greedy = grid(("cache_moe",), ("greedy",), cache_fractions=FRACTIONS)
    config.grids.lossy = grid(("cache_moe", "expertflow"), ("fifo", "greedy"), ("drop", "substitute"), FRACTIONS)
    config.grids.policies = grid(
        ("resident", "on_demand", "cache_moe", "expertflow", "oracle"), cache_fractions=FRACTIONS
    )
    config.grids.literature = grid(("class_lru", "lfu", "speculative", "moe_infinity"), cache_fractions=(0.25, 0.5))
    config.grids.rings = grid(
        ("se_moe", "pregated", "pregated_forecast"), cache_fractions=(0.5,)
    )  # two layers at least
    config.grids.schedulers = grid(("expertflow",), ("random", "kmeans", "greedy"), cache_fractions=FRACTIONS)
    return config
