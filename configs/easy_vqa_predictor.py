"""The committed routing path predictor of the committed easy-VQA model (configs/easy_vqa_moe.py).

    python -m train.predictor --config=configs/easy_vqa_predictor.py --workdir=runs/easy_vqa_predictor

Training and calibration traces are of the published train split, other questions each. Recall is measured on the test
split, from which nothing is learnt.
"""

import ml_collections

from configs import digit_scenes_predictor


def get_config() -> ml_collections.ConfigDict:
    """Returns the config of the predictor."""
    config = digit_scenes_predictor.get_config()
    config.model = "easy_vqa_moe"
    config.benchmark = "easy_vqa"
    config.easy_vqa.images = 400
    config.splits.calibration = "train"
    config.sequences.train = ml_collections.ConfigDict({"vqa_v2": 2_400})
    config.sequences.calibration = ml_collections.ConfigDict({"vqa_v2": 400})
    config.sequences.held_out = ml_collections.ConfigDict({"vqa_v2": 480})
    config.sequences.out_of_distribution = 0
    config.training.steps = 500
    return config
