"""Options of the careful miss policies, tried on the train split: what `configs/frontier.py` then holds to.

python -m eval.study --config=configs/frontier_tuning.py --workdir=runs/frontier_tuning
"""

import ml_collections

from configs import study_base

OPTIONS = (
    "wait",
    "drop_weak(below=1)",
    "drop_weak(below=1, phase='both')",
    "drop_light(mass=0.02)",
    "drop_light(mass=0.05)",
    "drop_light(mass=0.1)",
    "drop_light(mass=0.2)",
    "drop_light(mass=0.2, tokens='image')",
    "cache_prior(strength=0.2)",
    "cache_prior(strength=0.5)",
    "cache_prior(strength=0.05, top_j=0)",
    "cache_prior(strength=0.1, top_j=0)",
    "cache_prior(strength=0.2, top_j=0)",
    "cache_prior(strength=0.3, top_j=0)",
    "buddy(flat=0.9)",
    "buddy(flat=0.5)",
    "defer(experts=1)",
    "low_precision(bits=4, t1=0, t2=1)",
    "low_precision(bits=8, t1=-1, t2=1)",
    "low_precision(bits=4, t1=-1, t2=1)",
    "low_precision(bits=4, t1=-1, t2=0.6)",
)


def get_config() -> ml_collections.ConfigDict:
    """Returns the config of the tuning."""
    config = study_base.get_config()
    config.split = "train"
    config.grids.options = study_base.grid(("cache_moe",), miss_policies=OPTIONS, cache_fractions=(0.25, 0.5))
    return config
