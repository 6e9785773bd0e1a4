"""A predictor for any model from a user's own text.

    python -m train.predictor --config=configs/text_predictor.py --config.model=DIR --config.data_dir=DATA --workdir=OUT

DATA/text/train.jsonl and val.jsonl hold one {"text": "..."} per line (or train.txt and val.txt). For prompts that the
model answers, write DATA/prompts/train.jsonl and val.jsonl of {"prompt": "..."} or {"messages": [...]}, whose items may
hold pictures ({"type": "image", "image": "scene.png"}, from DATA/prompts, or a data: URL), and add
--config.sequences.train.prompts=N; a task with 0 sequences is not read.
"""

import ml_collections

from configs import digit_scenes_predictor


def get_config() -> ml_collections.ConfigDict:
    """Returns the config; sizes are for a few hundred kilobytes of text."""
    config = digit_scenes_predictor.get_config()
    config.data_dir = "data"
    config.sequences.train = ml_collections.ConfigDict({"text": 800, "prompts": 0})
    config.sequences.calibration = ml_collections.ConfigDict({"text": 50, "prompts": 0})
    config.sequences.held_out = ml_collections.ConfigDict({"text": 100, "prompts": 0})
    config.sequences.out_of_distribution = 0
    config.record_batch_size = 16
    config.training.steps = 1_500
    return config
