"""The committed pre-gates of the committed model.

python -m train.pregate --config=configs/digit_scenes_pregates.py --workdir=runs/digit_scenes_pregates
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    """Returns the config."""
    config = ml_collections.ConfigDict()
    config.model = "digit_scenes_moe"  # a committed model's name, a checkpoint directory, or a hub id
    config.seed = 0  # initial weights and choice of tokens
    config.task = "vqa_v2"
    config.data_dir = ""  # official files; empty: the benchmark below, written to WORKDIR/data
    config.benchmark = "digit_scenes"  # or "easy_vqa" (pip install easy-vqa)
    config.easy_vqa = ml_collections.ConfigDict({"images": 0})  # of each split; 0 for all
    config.digit_scenes = ml_collections.ConfigDict({"train": 1_200, "val": 8, "seed": 1})  # not the studies' seed
    config.sequences = 1_200  # questions of the train split whose routing is recorded
    config.new_tokens = 2  # of each answer
    config.record_batch_size = 64
    config.held_out = 0.1  # share of the tokens that recall is measured on

    config.hidden = 64  # H
    config.steps = 1_500
    config.batch_tokens = 512
    config.learning_rate = 3e-3
    config.weight_decay = 0.01
    config.log_every = 100
    config.checkpoint_every = 500
    return config
