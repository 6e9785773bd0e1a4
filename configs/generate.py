"""One answer from the committed model with half of its experts' memory.

python -m eval.generate --config=configs/generate.py --prompt="What is the largest digit?" --image=scene.png
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    """Returns the config."""
    config = ml_collections.ConfigDict()
    config.model = "digit_scenes_moe"  # a committed model's name, a checkpoint directory, or a hub id
    config.predictor = "digit_scenes_predictor"  # empty: no forecast
    config.dtype = "float32"  # empty: the checkpoint's own
    config.memory_budget = ""  # for example "8GiB"; empty: by cache_fraction
    config.cache_fraction = 0.5  # slots / experts; 0: by memory_budget, or all resident without one
    config.policy = "expertflow"
    config.miss_policy = "wait"
    config.link = "direct"
    config.max_tokens = 512  # of prompt and answer; the memory plan holds that many
    config.max_image_tokens = 64  # of the prompt's images
    config.max_new_tokens = 32
    config.temperature = 0.0
    config.top_k = 0  # sample from the k likeliest; 0: from all
    config.top_p = 1.0  # sample from the smallest set of tokens of this probability
    config.seed = 0
    config.stop = ()  # texts that end the answer
    return config
