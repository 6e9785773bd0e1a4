"""Host cost, simulated throughput and scheduling over sizes, within 6 minutes on two CPU cores.

python -m eval.simulate --config=configs/scale_cpu.py --workdir=runs/scale
"""

import ml_collections


def workload(num_layers, num_experts, top_k, prompt_tokens, new_tokens, recorded_costs="", link="", expert_bytes=0):
    """Sequences for the token schedulers; without recorded costs they run on `gpu`."""
    return ml_collections.ConfigDict(
        {
            "num_layers": num_layers,
            "num_experts": num_experts,
            "top_k": top_k,
            "prompt_tokens": prompt_tokens,
            "new_tokens": new_tokens,
            "batch_size": 8,
            "longest": 4096,  # longer windows are left out
            "recorded_costs": recorded_costs,
            "link": link,
            "expert_bytes": expert_bytes,
        }
    )


def get_config() -> ml_collections.ConfigDict:
    """Returns the config."""
    config = ml_collections.ConfigDict()
    config.study = "growth"
    config.seed = 0
    config.gpu = "rtx4090"  # whose compute and link are simulated, at published peaks
    config.shape = "qwen3_vl_30b_a3b"  # whose full-size layer it serves
    config.cache_fraction = 0.5
    config.top_k = 8  # active work is constant

    # host cost of a layer-step: the target's size, then over layers and over experts per layer
    config.policies = ("on_demand", "cache_moe", "expertflow")
    config.num_layers, config.num_experts = 48, 128
    config.layers = (4, 8, 16, 24, 48, 96)
    config.experts = (8, 16, 32, 64, 128, 256, 512)
    config.batch_sizes = (1, 8)  # sequences, one token each
    config.steps = 24
    config.repeats = 5  # timed, after one to warm up

    # token schedulers over the sequences in the window
    config.schedulers = ("fifo", "kmeans", "greedy", "local_search")
    config.windows = (1, 4, 16, 64, 256, 1024, 4096)
    config.workloads = ml_collections.ConfigDict()
    config.workloads.digit_scenes_moe = workload(
        6, 64, 2, 18, 3, "configs/costs/digit_scenes_moe_cpu.json", "emulated(0.28,2)", 36864
    )
    config.workloads.qwen3_vl_30b_a3b = workload(48, 128, 8, 64, 16)
    config.workloads.qwen3_vl_30b_a3b.longest = 1024
    return config
