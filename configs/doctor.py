"""A look at a new machine, about a minute: a few layers of a published shape with random weights.

python -m eval.doctor --config=configs/doctor.py --workdir=runs/doctor
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    """Returns the config."""
    config = ml_collections.ConfigDict()
    config.shape = "qwen3_vl_30b_a3b"  # or "mixtral_8x7b", whose experts are 37 times as large
    config.size = "auto"  # "whole": true sizes in bfloat16, as on a GPU; "small": cut down, as on a CPU
    config.layers = 4  # 4.5 GiB of experts at true sizes
    config.copy_megabytes = 256  # of one large copy
    config.repeats = 5  # of each measurement; medians count
    config.seconds = 30.0  # of decoding, half of it resident
    config.steps = 512  # decoded at most
    config.batch_size = 1
    config.device_form = ""  # how experts lie on the device: "in_place", "replaced", "pool"; empty: what suits it
    config.seed = 0
    return config
