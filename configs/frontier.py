"""What speed can be had for less than one point of accuracy? Careful miss policies beside the naive ones and controls.

    python -m eval.study --config=configs/frontier.py --workdir=runs/frontier

Options were chosen on the train split (`configs/frontier_tuning.py`); these are the questions held out. The blind
rows have every image blacked out, so that a loss can be read as a share of what seeing is worth. Another
model's frontier is `configs/frontier_of_model.py`.
"""

import ml_collections

from configs import study_base

FRACTIONS = (0.25, 0.5)
BUDGETS = ("10MiB", "12MiB")  # for everything on the device: 0.14 to 0.23, and 0.28 to 0.38 of the experts in float32
CAREFUL = (
    "drop_weak(below=1, phase='both')",
    "drop_light(mass=0.02)",
    "cache_prior(strength=0.1, top_j=0)",
    "cache_prior(strength=0.2, top_j=0)",
    "buddy(flat=0.9)",
    "defer(experts=1)",
    "low_precision(bits=8, t1=-1, t2=1)",
    "low_precision(bits=4, t1=-1, t2=0.6)",
)


def get_config() -> ml_collections.ConfigDict:
    """Returns the frontier's config."""
    config = study_base.get_config()
    grid = study_base.grid
    config.num_examples = 256
    config.grids.blind = grid(("resident",), cache_fractions=(1.0,), tasks=("vqa_v2_blind", "mmbench_blind"))
    config.grids.careful = grid(("cache_moe",), miss_policies=("wait", *CAREFUL), cache_fractions=FRACTIONS)
    config.grids.fewer = grid(("cache_moe",), miss_policies=("fewer_experts(top_k=1)",), cache_fractions=FRACTIONS)
    config.grids.quantised = grid(("cache_moe",), cache_fractions=FRACTIONS, expert_dtypes=("int8", "int4"))
    config.grids.naive = grid(("cache_moe",), miss_policies=("drop", "substitute"), cache_fractions=FRACTIONS)
    config.grids.forecasting = grid(("expertflow",), miss_policies=("wait", *CAREFUL), cache_fractions=FRACTIONS)
    config.grids.budgets = grid(("cache_moe",), miss_policies=("wait", *CAREFUL), memory_budgets=BUDGETS)
    config.grids.quantised_budgets = grid(("cache_moe",), memory_budgets=BUDGETS, expert_dtypes=("int8", "int4"))
    return config
