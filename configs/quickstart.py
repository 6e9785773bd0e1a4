"""The study that the README's first command runs: both tasks, every policy, scheduler and miss policy, four sizes.

python -m eval.study --config=configs/quickstart.py --workdir=runs/quickstart
"""

import ml_collections

from configs import study_base

FRACTIONS = (0.125, 0.25, 0.5, 0.75)


def get_config() -> ml_collections.ConfigDict:
    """Returns the quickstart's config."""
    config = study_base.get_config()
    block = study_base.block
    config.blocks.policies = block(
        ("resident", "on_demand", "cache_moe", "expertflow", "oracle"), cache_fractions=FRACTIONS
    )
    config.blocks.cache_moe_greedy = block(("cache_moe",), ("greedy",), cache_fractions=FRACTIONS)
    config.blocks.schedulers = block(("expertflow",), ("random", "kmeans", "greedy"), cache_fractions=FRACTIONS)
    config.blocks.lossy = block(("cache_moe", "expertflow"), ("fifo", "greedy"), ("drop", "substitute"), FRACTIONS)
    return config
