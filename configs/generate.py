"""One answer from the committed model with half of its experts' memory.

python -m eval.generate --config=configs/generate.py --prompt="What is the largest digit?" --image=scene.png
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    """Returns the config."""
    config = ml_collections.ConfigDict()
    config.model = "digit_scenes_moe"  # a committed model's name, a checkpoint directory, or a hub id
    config.predictor = "auto"  # its directory; auto: the one that comes with a committed model; empty: no forecast
    config.dtype = ""  # "float32" or "bfloat16"; empty: the checkpoint's own
    config.expert_dtype = ""  # "int8" or "int4" keeps and moves experts quantised, which is lossy
    config.memory_budget = ""  # of the device, for example "8GiB"; empty: by cache_fraction
    config.cache_fraction = 0.5  # slots / experts, if there is no memory_budget; 0: all resident
    config.host_memory_budget = (
        ""  # for experts, for example "32GiB"; the others stay on disk. Empty: as much as it takes
    )
    config.policy = "expertflow"
    config.miss_policy = "wait"
    config.link = "direct"
    config.device_form = ""  # how experts lie on the device: "in_place", "replaced", "pool"; empty: what suits it
    config.max_tokens = 512  # of prompt and answer; the memory plan holds that many
    config.max_image_tokens = 64  # of the prompt's images
    config.max_new_tokens = 32
    config.temperature = 0.0
    config.top_k = 0  # sample from the k likeliest; 0: from all
    config.top_p = 1.0  # sample from the smallest set of tokens of this probability
    config.seed = 0
    config.stop = ()  # texts that end the answer
    return config
