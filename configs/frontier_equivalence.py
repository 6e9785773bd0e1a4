"""The frontier's winners and controls alone, on as many held-out questions as equivalence at one point takes.

    python -m eval.study --config=configs/frontier_equivalence.py --workdir=runs/frontier_equivalence

Equivalence at one point takes 299 independent images without a changed answer, and with Holm's adjustment over a dozen
cells 600; where one image in 400 changes for the worse it takes 1,000 to 1,250. 2,400 of 8,000 questions are of some
1,500 images, and of some 660 questions of MMBench with all their rotations.
"""

import ml_collections

from configs import study_base

WINNERS = ("low_precision(bits=8, t1=-1, t2=1)", "low_precision(bits=4, t1=-1, t2=0.6)")


def get_config() -> ml_collections.ConfigDict:
    """Returns the config of the large sample."""
    config = study_base.get_config()
    grid = study_base.grid
    config.digit_scenes.val = 8_000
    config.num_examples = 2_400
    config.grids.winners = grid(("cache_moe",), miss_policies=("wait", *WINNERS), cache_fractions=(0.25, 0.5))
    config.grids.quantised = grid(("cache_moe",), cache_fractions=(0.25, 0.5), expert_dtypes=("int8", "int4"))
    return config
