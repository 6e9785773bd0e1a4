"""Accuracy on VQA v2 and MMBench over cache sizes and memory budgets: on the official files, or on digit scenes.

    python -m eval.study --config=configs/study_vqa_v2_mmbench.py --workdir=runs/accuracy
    python -m eval.study --config=configs/study_vqa_v2_mmbench.py --workdir=runs/official --config.data_dir=DATA \
        --config.model=DIR --config.predictor=DIR --config.costs=FILE \
        --config.grids.budgets.memory_budgets="('24GiB','32GiB')"

DATA holds `vqa_v2/` and `mmbench/` as published. Questions are a random sample of whole images.
"""

import ml_collections

from configs import study_base

FRACTIONS = (0.125, 0.25, 0.5, 0.75)


def get_config() -> ml_collections.ConfigDict:
    """Returns the config."""
    config = study_base.get_config()
    config.sample_seed = 0
    policies = ("on_demand", "cache_moe", "expertflow")
    config.grids.lossless = study_base.grid(("resident", *policies), ("fifo", "greedy"), cache_fractions=FRACTIONS)
    config.grids.lossy = study_base.grid(policies, ("fifo",), ("drop", "substitute"), cache_fractions=FRACTIONS)
    config.grids.budgets = study_base.grid(("on_demand", "expertflow"), memory_budgets=("12MiB", "16MiB"))
    return config
