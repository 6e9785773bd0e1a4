"""What a model's routing is like: prompts of one kind against others, image against text tokens, reuse of experts.

    python -m eval.routing --config=configs/routing.py --workdir=runs/routing

Any model and any prompts: --config.model=DIR, and DATA/prompts/val.jsonl with lines {"prompt": ..., "group": ...} under
--config.data_dir=DATA with --config.sequences.prompts=N.
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    """Returns the config."""
    config = ml_collections.ConfigDict()
    config.model = "digit_scenes_moe"  # a committed model's name, a checkpoint directory, or a hub id
    config.seed = 0

    config.data_dir = ""  # official files; empty: `benchmark`, written to WORKDIR/data
    config.benchmark = "digit_scenes"  # or "easy_vqa" (pip install easy-vqa)
    config.digit_scenes = ml_collections.ConfigDict({"train": 64, "val": 3_000, "seed": 0})
    config.split = "val"
    config.image_first = False  # whether prompts show the image before the question
    # Prompts by task; of a question with rotated options one rotation. Their groups (question types) are the labels.
    config.sequences = ml_collections.ConfigDict({"vqa_v2": 800, "mmbench": 400, "prompts": 0, "text": 0})
    config.text_tokens = 128  # tokens of a sequence of task "text"
    config.record_batch_size = 64
    config.fewest = 20  # groups with fewer prompts are left out of the comparison

    config.permutations = 200  # how often labels, or kinds of tokens, are dealt out anew
    config.batch_size = 8  # of the steps whose reuse is looked at
    config.cache_sizes = (4, 8, 16, 32, 48)  # experts per layer
    return config
