"""The whole grid: all policies x schedulers x miss policies x eight cache sizes x three seeds, on all examples.

python -m eval.study --config=configs/full.py --workdir=runs/full
"""

import ml_collections

from configs import study_base

FRACTIONS = (0.03125, 0.0625, 0.125, 0.25, 0.375, 0.5, 0.75, 1.0)
SCHEDULERS = ("fifo", "random", "kmeans", "greedy")


def get_config() -> ml_collections.ConfigDict:
    """Returns the full study's config."""
    config = study_base.get_config()
    config.num_examples = 0
    config.seeds = (0, 1, 2)
    config.bootstrap_samples = 10_000
    policies = ("on_demand", "cache_moe", "expertflow", "oracle")
    config.grids.lossless = study_base.grid(("resident", *policies), SCHEDULERS, cache_fractions=FRACTIONS)
    config.grids.lossy = study_base.grid(policies, SCHEDULERS, ("drop", "substitute"), FRACTIONS)
    return config
