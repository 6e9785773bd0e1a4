"""The quickstart's cells on a GPU: real clock, the card's own link.

A checkpoint of your own: --config.model, and --config.predictor with one that train.predictor has made for it.

python -m eval.study --config=configs/study_gpu.py --workdir=runs/study_gpu
"""

import ml_collections

from configs.quickstart import get_config as quickstart


def get_config() -> ml_collections.ConfigDict:
    """Returns the config."""
    config = quickstart()
    config.clock = "real"
    config.link = "direct"
    config.device_form = ""  # how experts lie on the device: "in_place", "replaced", "pool"; empty: what suits it
    return config
