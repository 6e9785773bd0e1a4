"""Every combination of models, phases, batch sizes and cache fractions: hours. See configs/throughput_cpu.py.

python -m eval.throughput --config=configs/throughput_full.py --workdir=runs/throughput_full
"""

import ml_collections

from configs.throughput_cpu import ALL, SHAPES, grid
from configs.throughput_cpu import get_config as cpu_config

MORE_SHAPES = ("qwen1.5_moe_a2.7b", "switch_base_8", "switch_base_64", "switch_base_128")


def get_config() -> ml_collections.ConfigDict:
    """Returns the config."""
    config = cpu_config()
    fractions = (0.0, 0.125, 0.25, 0.5, 0.75, 1.0)
    models = (config.model, *SHAPES, *MORE_SHAPES)
    with config.unlocked():
        config.grids = ml_collections.ConfigDict(sort_keys=False)
        config.grids.all = grid(models, batch_sizes=(1, 8, 32), cache_fractions=fractions, variants=ALL)
    config.baseline_models = (*SHAPES, "qwen1.5_moe_a2.7b")
    config.minutes = 1440.0
    return config
