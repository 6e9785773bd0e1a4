"""The committed MoE vision-language model: Qwen3-VL-MoE's architecture at 6 layers of 64 experts, on digit scenes.

    python -m train.moe --config=configs/digit_scenes_moe.py --workdir=runs/digit_scenes_moe

The architecture keys are those of the checkpoint's config.json, so this is a small config of the module that runs
Qwen3-VL-30B-A3B.
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    """Returns the config of the committed checkpoint."""
    config = ml_collections.ConfigDict()
    config.benchmark = "digit_scenes"  # what is learnt; see training/course.py
    config.start = ""  # model whose parameters, experts included, training begins with; empty: see warm_start
    config.seed = 0  # initial weights and data stream
    config.warm_start = ""  # model whose dense parameters training begins with; empty: all are new

    config.text = ml_collections.ConfigDict()
    config.text.hidden_size = 96
    config.text.num_hidden_layers = 6  # all of them MoE layers
    config.text.num_attention_heads = 4
    config.text.num_key_value_heads = 2
    config.text.head_dim = 32
    config.text.mrope_section = (6, 5, 5)  # frequencies of time, height and width; half of head_dim in all
    config.text.rope_theta = 10_000.0
    config.text.num_experts = 64
    config.text.num_experts_per_tok = 2
    config.text.moe_intermediate_size = 32
    config.text.max_position_embeddings = 512

    config.vision = ml_collections.ConfigDict()
    config.vision.depth = 2
    config.vision.hidden_size = 64
    config.vision.num_heads = 4
    config.vision.intermediate_size = 128
    config.vision.deepstack_visual_indexes = (0,)

    config.dense_share = 0.3  # training-only questions that read the whole grid, for quick perception
    config.dense_steps = 5_000  # until this step
    config.mmbench_every = 5  # every fifth batch is in multiple-choice form
    config.second_stage = ml_collections.ConfigDict(
        {
            "step": 5_501,  # perception is learnt by then; finding by content, comparing and choosing are not
            "learning_rate": 1.2e-3,  # start of a second cosine
            "matching_share": 0.25,  # training-only questions that ask of each cell whether it matches
            "hard_share": 0.4,  # questions of the types learnt last
            "mmbench_every": 3,
        }
    )
    config.batch_size = 128
    config.steps = 9_000
    config.learning_rate = 2e-3
    config.decay_steps = 8_000  # of the first cosine
    config.final_lr_fraction = 0.02
    config.warmup_steps = 300
    config.weight_decay = 0.05
    config.adam_b2 = 0.98
    config.clip_norm = 1.0
    config.ema_decay = 0.999
    config.balance_weight = (
        0.01  # over the whole batch: experts may specialise as long as the whole batch uses them all
    )

    config.log_every = 50
    config.eval_every = 1_000
    config.eval_examples = 1_024
    config.eval_group = 8  # sequences per batch when counting the distinct experts that a batch activates
    config.checkpoint_every = 500
    config.export_dtype = "bfloat16"
    config.official = ml_collections.ConfigDict({"train": 4_000, "val": 2_000})  # questions behind the card
    return config
