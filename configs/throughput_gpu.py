"""Two published models at their true sizes on a GPU, random weights in bfloat16, over the card's own link.

Each cell's reference has everything resident: 60 GiB for Qwen3-VL-30B-A3B (a card with 80 GB), 90 GiB for Mixtral-8x7B
(an H200); cells whose reference does not fit are left out, which the run says. --dry_run prints what each takes. Host
memory: 54 and 84 GiB, pinned.

python -m eval.throughput --config=configs/throughput_gpu.py --workdir=runs/throughput_gpu
"""

import ml_collections

from configs.throughput_cpu import get_config as cpu_config
from configs.throughput_cpu import grid

MIXTRAL, QWEN = "mixtral_8x7b_whole", "qwen3_vl_30b_a3b_whole"
OFFLOADED = ("on_demand", "cache_moe", "class_lru", "expertflow")


def get_config() -> ml_collections.ConfigDict:
    """Returns the config."""
    config = cpu_config()
    config.link = "direct"
    config.device_form = ""  # how experts lie on the device: "in_place", "replaced", "pool"; empty: what suits it
    config.sequences = 64
    config.headline = (QWEN, "decode", 1, 0.5)
    config.minutes = 120.0
    config.grids = ml_collections.ConfigDict(sort_keys=False)
    sizes = {"batch_sizes": (1, 8), "cache_fractions": (0.25, 0.5)}
    config.grids.qwen = grid((QWEN,), **sizes, variants=("resident", *OFFLOADED))
    config.grids.mixtral = grid((MIXTRAL,), **sizes, variants=OFFLOADED)
    config.grids.blocks = grid(
        (QWEN,), cache_fractions=(0.25,), batches=(8,), batches_per_block=(1, 4), variants=("cache_moe", "expertflow")
    )
    config.baseline_models, config.baseline_batch_sizes = (), (1, 8)
    config.host_cost = True
    # Beside ours, where they are installed; a row says where not. (model, batch size, GB of the card for weights)
    config.rivals = ((QWEN, 1, 32), (QWEN, 8, 32), (MIXTRAL, 1, 48))
    config.rival_tokens = 32
    config.reference_python = ""  # with torch, transformers and accelerate
    config.gguf = ""  # of the first rival model, in 16 bits, for llama.cpp
    config.llama_options = "-ngl 99 -ncmoe 24"  # layers on the card, and of those the ones whose experts are not
    return config
