"""The committed MoE vision-language model of easy-VQA, a benchmark that somebody else made.

    pip install easy-vqa
    python -m train.moe --config=configs/easy_vqa_moe.py --workdir=runs/easy_vqa_moe

The architecture is that of configs/digit_scenes_moe.py, so it too is a small config of the module that runs
Qwen3-VL-30B-A3B. It learns from the published train split, a part of which is kept for validation; the published test
split is answered once, at the end.
"""

import ml_collections

from configs import digit_scenes_moe


def get_config() -> ml_collections.ConfigDict:
    """Returns the config of the model."""
    digits = digit_scenes_moe.get_config()
    config = ml_collections.ConfigDict()
    config.benchmark = "easy_vqa"  # what is learnt; see training/course.py
    config.start = "digit_scenes_moe"  # seeing and answering are known; shapes and words are new
    config.warm_start = ""
    config.seed = 0  # order of questions, choice of the held-out images, embeddings of new words
    config.held_out_images = 400  # of the train split's 4,000
    config.text, config.vision = digits.text, digits.vision

    config.batch_size = 64
    config.steps = 2_000  # three times as many questions as the train split has
    config.learning_rate = 1.5e-3
    config.decay_steps = 2_000
    config.final_lr_fraction = 0.02
    config.warmup_steps = 50
    config.weight_decay = 0.05
    config.adam_b2 = 0.98
    config.clip_norm = 1.0
    config.ema_decay = 0.99
    config.balance_weight = 0.01

    config.log_every = 25
    config.eval_every = 250
    config.eval_examples = 512  # held-out questions that are measured while it learns
    config.eval_group = 8  # sequences per batch when counting the distinct experts that a batch activates
    config.checkpoint_every = 50
    config.export_dtype = "bfloat16"
    return config
