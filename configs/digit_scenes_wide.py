"""A second model of the same size in other pieces: 16 experts of twice the width, top 2, on digit scenes.

    python -m train.moe --config=configs/digit_scenes_wide.py --workdir=runs/digit_scenes_wide

Everything outside routers and experts starts as in the committed model, so that a thirtieth of its steps, of half
its batch, are enough.
"""

import ml_collections

from configs import digit_scenes_moe


def get_config() -> ml_collections.ConfigDict:
    """Returns the config of the model with wide experts."""
    config = digit_scenes_moe.get_config()
    config.warm_start = "digit_scenes_moe"
    config.text.num_experts = 16
    config.text.moe_intermediate_size = 64
    shorten(config)
    return config


def shorten(config: ml_collections.ConfigDict) -> None:
    """The schedule of a warm start: perception needs no lessons of its own, and one cosine leads to the end."""
    config.batch_size = 64
    config.steps = 300
    config.warmup_steps = 30
    config.learning_rate = 1.5e-3
    config.decay_steps = 300
    config.dense_steps = 60
    config.second_stage.step = 60
    config.second_stage.learning_rate = 1.5e-3
    config.ema_decay = 0.98
    config.log_every = 25
    config.eval_every = 100
    config.eval_examples = 512
    config.checkpoint_every = 50
    config.official = ml_collections.ConfigDict({"train": 1_000, "val": 500})
