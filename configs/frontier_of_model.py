"""The frontier of another model without a predictor, for example one of ours with other experts and another top-k.

    python -m train.moe --config=configs/digit_scenes_wide.py --workdir=runs/digit_scenes_wide
    python -m eval.study --config=configs/frontier_of_model.py:runs/digit_scenes_wide/export --workdir=runs/wide

Costs and link are those of the committed model: what differs is which experts are asked for, and how large they are.
"""

import ml_collections

from configs import frontier


def get_config(model: str = "digit_scenes_moe") -> ml_collections.ConfigDict:
    """Returns the config of the frontier of `model`: a committed model's name, a checkpoint directory or a hub id."""
    config = frontier.get_config()
    config.model = model
    config.predictor = ""
    del config.grids.forecasting, config.grids.budgets, config.grids.quantised_budgets
    return config
