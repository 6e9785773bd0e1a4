"""How long VQA v2 and MMBench take with Qwen3-VL-30B-A3B on three cards, batch by batch and in blocks of batches.

python -m eval.plan --config=configs/plan_evaluation.py
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    """Returns the config."""
    config = ml_collections.ConfigDict()
    config.served = "qwen3_vl_30b_a3b"
    names = ("qwen3_vl_30b_a3b", "mixtral_8x7b")
    config.models = ml_collections.ConfigDict({name: f"configs/models/{name}" for name in names})  # with a config.json
    # name, questions, tokens of a prompt, tokens of its image among them, decode steps after the prompt
    config.data_sets = (
        ("VQA v2 val", 214354, 320, 300, 3),
        ("MMBench dev", 4329, 320, 256, 0),  # every rotation of the choices; the letter is the first token
    )
    config.cards = (("rtx4090", "16GiB"), ("rtx4090", "24GiB"), ("h100", "80GiB"))  # and the device memory to use
    config.batch_size = 8
    config.batches_per_block = (1, 4, 8)
    config.variants = ("cache_moe", "expertflow")

    config.model = "digit_scenes_moe"  # whose routing is recorded and carried over
    config.predictor = "digit_scenes_predictor"
    config.sequences = 64  # recorded; the window that stands for the data set
    config.new_tokens = 3  # recorded
    config.seed = 0
    return config
