"""The committed routing path predictor of the committed model.

    python -m train.predictor --config=configs/digit_scenes_predictor.py --workdir=runs/digit_scenes_predictor

Rerun it after training another model: a predictor is bound to the very weights whose routing it saw.
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    """Returns the config of the committed predictor."""
    config = ml_collections.ConfigDict()
    config.model = "digit_scenes_moe"  # a committed model's name, a checkpoint directory, or a hub id
    config.seed = 0  # initial weights, order of sequences, choice of examples

    config.data_dir = ""  # official files; empty: the benchmark below, written to WORKDIR/data
    config.benchmark = "digit_scenes"  # or "easy_vqa" (pip install easy-vqa)
    config.easy_vqa = ml_collections.ConfigDict({"images": 0})  # of each split; 0 for all
    # Questions. Another seed than the studies have, so that no study meets a prompt that was seen here.
    config.digit_scenes = ml_collections.ConfigDict({"train": 12_000, "val": 3_000, "seed": 1})
    config.image_first = False  # whether prompts show the image before the question

    # The split that each trace set is drawn from, and its sequences by task; sets of one split share no question.
    # Calibration and held-out traces are of the val split: unseen scans.
    config.splits = ml_collections.ConfigDict({"train": "train", "calibration": "val", "held_out": "val"})
    config.sequences = ml_collections.ConfigDict()
    config.sequences.train = ml_collections.ConfigDict({"vqa_v2": 12_000, "mmbench": 4_000})
    config.sequences.calibration = ml_collections.ConfigDict({"vqa_v2": 1_000, "mmbench": 400})
    config.sequences.held_out = ml_collections.ConfigDict({"vqa_v2": 1_500, "mmbench": 500})
    config.sequences.out_of_distribution = 512  # questions of a kind that no benchmark split holds; 0 for none
    config.record_batch_size = 128
    config.text_tokens = 128  # tokens of a sequence of task "text"

    config.predictor = ml_collections.ConfigDict({"width": 96, "depth": 2, "heads": 4, "hidden": 256})

    config.training = ml_collections.ConfigDict()
    config.training.steps = 6_000
    config.training.batch_size = 64
    config.training.learning_rate = 6e-3
    config.training.final_lr_fraction = 0.02
    config.training.warmup_steps = 100
    config.training.weight_decay = 0.05
    config.training.clip_norm = 1.0
    config.training.loss = "bce"  # a proper score: probabilities of tokens are combined over a batch
    config.training.positive_weight = 1.0
    config.training.decode_weight = 1.0  # of a decoded token, against one of the prompt
    config.training.following_weight = 0.3  # of the forecast of the next token, against that of the token itself
    config.training.log_every = 50
    config.training.checkpoint_every = 250

    config.eval_batch_size = 8  # sequences whose steps are forecast together in the report
    return config
