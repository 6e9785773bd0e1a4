"""Where scheduling can change answers: a capacity of experts that a batch shares, over batch composition.

    python -m eval.study --config=configs/capacity.py --workdir=runs/capacity

Each scheduler forms other batches, and under `capacity` a token loses what those before it in the batch have taken. The
committed model was trained without a capacity: this lays one on it, while it reads prompts and, in one grid, while it
decodes too. `wait` is the same without.
"""

import ml_collections

from configs import study_base

SCHEDULERS = ("fifo", "random", "kmeans", "greedy")
FACTORS = (0.5, 1.0, 1.25, 2.0, 4.0)


def get_config() -> ml_collections.ConfigDict:
    """Returns the config."""
    config = study_base.get_config()
    grid, sizes = study_base.grid, {"cache_fractions": (0.5,)}
    rules = tuple(f"capacity(factor={factor:g}, phase='prefill')" for factor in FACTORS)
    config.grids.prompts = grid(("cache_moe",), SCHEDULERS, ("wait", *rules), **sizes)
    config.grids.answers_too = grid(("cache_moe",), SCHEDULERS, ("capacity(factor=1.25)",), **sizes)
    return config
