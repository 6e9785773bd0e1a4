"""A config of blocks that takes seconds: Mixtral, two batches of two recorded questions."""

import ml_collections

from configs.blocks import MIXTRAL, grid
from configs.blocks import get_config as full_config


def get_config() -> ml_collections.ConfigDict:
    config = full_config()
    config.batch_size = 2
    config.new_tokens = 1
    sizes = {"models": (MIXTRAL,), "new_tokens": (1,), "batches_per_block": (1, 2), "sequences": (4,)}
    with config.unlocked():
        config.grids = ml_collections.ConfigDict(sort_keys=False)
        config.grids.slots = grid(cache_fractions=(0.25, 0.5), **sizes)
        config.grids.memory = grid(prompt_tokens=(40,), memory_budgets=("4GiB", "24GiB"), **sizes)
    return config
