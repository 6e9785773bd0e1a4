"""Blocks of batches on full-size models behind a GPU's link, on the virtual clock.

python -m eval.simulate --config=configs/blocks.py --workdir=runs/blocks
"""

import ml_collections

QWEN, MIXTRAL = "qwen3_vl_30b_a3b", "mixtral_8x7b"


def grid(
    models=(QWEN,),
    prompt_tokens=(0,),
    new_tokens=(3,),
    cache_fractions=(),
    memory_budgets=(),
    variants=("cache_moe", "expertflow"),
    batches_per_block=(1, 2, 4, 8),
    sequences=(64,),
):
    """One group of cells: every combination of its values."""
    return ml_collections.ConfigDict(
        {
            "models": tuple(models),
            "sequences": tuple(sequences),  # of the window; blocks that it cannot fill are left out
            "prompt_tokens": tuple(prompt_tokens),  # of every prompt; 0: as recorded
            "new_tokens": tuple(new_tokens),  # decode steps after the prompt
            "cache_fractions": tuple(cache_fractions),  # slots / experts, or
            "memory_budgets": tuple(memory_budgets),  # device memory for everything, the block's KV caches included
            "variants": tuple(variants),
            "batches_per_block": tuple(batches_per_block),
        }
    )


def get_config() -> ml_collections.ConfigDict:
    """Returns the config."""
    config = ml_collections.ConfigDict()
    config.study = "blocks"
    config.seed = 0
    config.model = "digit_scenes_moe"  # the trained model, whose routing is recorded and carried to the full-size ones
    config.predictor = "digit_scenes_predictor"
    config.new_tokens = 3  # recorded
    config.gpu = "rtx4090"  # compute and link at published peaks
    config.batch_size = 8
    config.models = ml_collections.ConfigDict({name: f"configs/models/{name}" for name in (QWEN, MIXTRAL)})

    config.grids = ml_collections.ConfigDict(sort_keys=False)
    config.grids.equal_slots = grid((QWEN, MIXTRAL), cache_fractions=(0.125, 0.25, 0.5))
    few = (1, 8)
    config.grids.equal_memory = grid(
        prompt_tokens=(300,), memory_budgets=("12GiB", "16GiB", "24GiB"), batches_per_block=few
    )
    config.grids.long_prompts = grid(
        prompt_tokens=(1000,), new_tokens=(0, 3), cache_fractions=(0.25,), batches_per_block=few
    )
    return config
