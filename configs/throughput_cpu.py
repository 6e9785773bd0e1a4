"""Lossless policies side by side on two CPU cores, within 20 minutes; the link is scaled to an RTX 4090.

Every value of every axis is there, not every combination: configs/throughput_full.py has those.

python -m eval.throughput --config=configs/throughput_cpu.py --workdir=runs/throughput
"""

import ml_collections

SHAPES = ("mixtral_8x7b", "qwen3_vl_30b_a3b")
VARIANTS = ("resident", "on_demand", "cache_moe", "expertflow", "expertflow(truth)")
ALL = (*VARIANTS, "oracle")
WITHOUT_ROUTERS = ("lfu", "class_lru", "moe_infinity")  # other systems that a replayed shape can run
RIVALS = (
    *WITHOUT_ROUTERS,
    "speculative",
    "se_moe",
    "pregated_forecast",
)  # of the trained model alone


def grid(
    models,
    phases=("prefill", "decode"),
    batch_sizes=(8,),
    cache_fractions=(0.5,),
    variants=VARIANTS,
    batches=(0,),
    batches_per_block=(1,),
):
    """One group of cells: every combination of its values. Cache fraction 0 is one slot, the least that works; as many
    batches as `windows` says where 0 stands."""
    return ml_collections.ConfigDict(
        {
            "models": tuple(models),
            "phases": tuple(phases),
            "batch_sizes": tuple(batch_sizes),
            "cache_fractions": tuple(cache_fractions),
            "variants": tuple(variants),
            "batches": tuple(batches),
            "batches_per_block": tuple(batches_per_block),
        }
    )


def get_config() -> ml_collections.ConfigDict:
    """Returns the config."""
    config = ml_collections.ConfigDict()
    config.model = "digit_scenes_moe"  # the trained model, measured as it is; its routing is replayed on the shapes
    config.predictor = "digit_scenes_predictor"
    config.sequences = 64  # recorded
    config.seed = 0  # of the shapes' weights and of the recorded questions
    config.link = "scaled(rtx4090)"  # or emulated(GB/s,us), pcie4x16, pcie5x16, nvlink-c2c, direct
    config.repeats = 5  # after one warm-up, variants in turns
    # batch size, prefill steps, decode batches, decode steps of each
    config.windows = ((1, 2, 6, 3), (8, 2, 3, 3), (32, 2, 2, 3))
    config.headline = ("qwen3_vl_30b_a3b", "decode", 8, 0.25)  # at the top of throughput.json, and in the timeline
    config.minutes = 18.5  # after these no further cell is begun; the same command goes on with what is left

    config.grids = ml_collections.ConfigDict(sort_keys=False)  # measured in this order
    headline = {"cache_fractions": (0.25,), "variants": (*VARIANTS, *WITHOUT_ROUTERS)}
    config.grids.headline = grid(("qwen3_vl_30b_a3b",), ("decode",), **headline)
    config.grids.shapes = grid(SHAPES, cache_fractions=(0.25, 0.5))
    in_blocks = {
        "batches": (8,),
        "batches_per_block": (1, 2, 4, 8),
        "variants": ("resident", "cache_moe", "expertflow"),
    }
    config.grids.blocks = grid(("qwen3_vl_30b_a3b",), cache_fractions=(0.25,), **in_blocks)
    config.grids.rivals = grid((config.model,), cache_fractions=(0.5,), variants=(*ALL, *RIVALS))
    config.grids.trained = grid((config.model,), cache_fractions=(0.125, 0.25, 1.0), variants=ALL)
    least = ("resident", "on_demand", "expertflow")
    config.grids.least_memory = grid((config.model, *SHAPES), ("decode",), (1,), (0.0,), least)
    more_shapes = ("switch_base_8", "switch_base_64", "switch_base_128", "qwen1.5_moe_a2.7b")
    config.grids.more_shapes = grid(more_shapes, ("decode",), cache_fractions=(0.25,))
    config.grids.batch_sizes = grid((config.model, *SHAPES), batch_sizes=(1, 32))
    config.grids.fractions = grid(SHAPES, ("decode",), cache_fractions=(0.75, 1.0))
    config.grids.small_fraction = grid(SHAPES, ("decode",), cache_fractions=(0.125,))

    # all resident: the engine, the fused whole-model jit, and Hugging Face transformers
    config.baseline_models = ("mixtral_8x7b",)
    config.baseline_batch_sizes = (1, 8, 32)
    config.reference_python = ""  # a Python with torch and transformers, to time them on the same weights
    config.host_cost = True  # microbenchmark of the engine's bookkeeping, without weights
    return config
