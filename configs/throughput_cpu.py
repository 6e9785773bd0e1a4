"""Every lossless policy side by side on two CPU cores, within 20 minutes; the link is scaled to an RTX 4090.

python -m eval.throughput --config=configs/throughput_cpu.py --workdir=runs/throughput
"""

import ml_collections

ALL = ("resident", "on_demand", "cache_moe", "expertflow", "expertflow(truth)", "oracle")


def block(models, phases=("prefill", "decode"), batch_sizes=(8,), cache_fractions=(0.5,), variants=ALL):
    """One block of the grid: every combination of its values. Cache fraction 0 is one slot, the least that works."""
    return ml_collections.ConfigDict(
        {
            "models": tuple(models),
            "phases": tuple(phases),
            "batch_sizes": tuple(batch_sizes),
            "cache_fractions": tuple(cache_fractions),
            "variants": tuple(variants),
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
    config.windows = ((1, 4, 6, 3), (8, 2, 2, 3), (32, 1, 1, 3))
    config.headline = ("qwen3_vl_30b_a3b", "decode", 8, 0.5)  # the cell at the top of throughput.json, and its timeline

    config.blocks = ml_collections.ConfigDict()
    config.blocks.trained = block(
        ("digit_scenes_moe",), batch_sizes=(1, 8, 32), cache_fractions=(0.125, 0.25, 0.5, 0.75, 1.0)
    )
    shapes = ("mixtral_8x7b", "qwen3_vl_30b_a3b")
    config.blocks.shapes = block(shapes, batch_sizes=(1, 8, 32), cache_fractions=(0.25, 0.5))
    config.blocks.fractions = block(shapes, ("decode",), cache_fractions=(0.125, 0.75, 1.0))
    config.blocks.more_shapes = block(("qwen1.5_moe_a2.7b", "switch_base_64"), ("decode",), (8,), (0.25, 0.5))
    config.blocks.least_memory = block(("digit_scenes_moe", *shapes), ("decode",), (1,), (0.0,))

    config.minutes = 17.0  # after these no further cell is begun; the same command goes on with what is left
    config.baseline_models = ("mixtral_8x7b",)
    config.fused_batch_sizes = (1, 8, 32)  # the fused whole-model jit against all resident through the engine
    config.host_cost = True  # microbenchmark of the engine's bookkeeping, without weights
    config.reference_python = ""  # a Python with torch and transformers, to time them on the same weights
    return config
