"""Eight claims about ExpertFlow and its rivals, with the criterion of each, fixed here before anything runs.

python -m eval.claims --config=configs/claims.py --workdir=runs/claims
"""

import ml_collections


def mechanism(number, text, policy, name, **least):
    """A claim about what a system does: every measure of `studies.claims.mechanisms` (or `gates`) that is named has to
    be at least so large."""
    return ml_collections.ConfigDict(
        {"number": number, "text": text, "policy": policy, "mechanism": name, "least": {**least}}
    )


def speed(number, text, least, most, shapes, cache_sizes, baselines):
    """A claim about speed. It is verified if, in every cell and against every baseline, the whole 95 % interval of the
    speed-up lies at or above `least`; refuted if the whole interval of one lies below; else not decidable here."""
    return ml_collections.ConfigDict(
        {
            "number": number,
            "text": text,
            "least": least,
            "most": most,
            "shapes": shapes,  # each with its MoE layers
            "cache_sizes": cache_sizes,  # slots per layer, shared or not; those that hold all experts are left out
            "baselines": baselines,  # se_moe has two sections where that is more
        }
    )


def get_config() -> ml_collections.ConfigDict:
    """Returns the config."""
    config = ml_collections.ConfigDict()
    config.seed = 0
    config.model = "digit_scenes_moe"
    config.predictor = "digit_scenes_predictor"
    config.sequences = 64  # recorded
    config.new_tokens = 3  # decode steps of each
    config.costs = "configs/costs/digit_scenes_moe_cpu.json"  # of the model itself, for the mechanisms
    config.link = "emulated(0.28,2)"
    config.cache_fraction = 0.5
    config.gpu = "a40"  # for speed, at published peaks; the paper's
    config.batch_sizes = (4, 16)

    config.speed = ml_collections.ConfigDict(sort_keys=False)
    config.speed.switch = speed(
        1,
        "ExpertFlow is 1.85 to 5.86 times as fast as the baselines on Switch Transformers",
        *(1.85, 5.86),
        (("switch_base_32", 12), ("switch_base_64", 12), ("switch_base_128", 12)),
        (4, 16),
        ("cache_moe", "se_moe", "pregated_forecast"),
    )
    config.speed.large = speed(
        2,
        "ExpertFlow is 1.85 to 2.16 times as fast as Cache-MoE on Mixtral and Qwen1.5",
        *(1.85, 2.16),
        (("mixtral_8x7b", 32), ("qwen1.5_moe_a2.7b", 24)),
        (4, 16),
        ("cache_moe",),
    )

    config.mechanisms = ml_collections.ConfigDict(sort_keys=False)
    config.mechanisms.ring = mechanism(
        3,
        "SE-MoE overlaps computing and moving experts by ring scheduling",
        "se_moe",
        "ring",
        **{"in order": 1.0, "next section there or under way": 0.99, "experts moved / all experts": 0.99},
    )
    config.mechanisms.lru = mechanism(
        4,
        "Cache-MoE is a fixed cache per layer with LRU",
        "cache_moe",
        "lru_per_layer",
        **{"victim of the same layer": 1.0, "its oldest": 1.0},
    )
    config.mechanisms.gates = mechanism(
        5,
        "Pregated-MoE chooses experts by MLP routers, without gating at run time",
        "pregated",
        "gates",
        **{
            "choices that the gate before names": 0.999,
            "answers whose bits spoilt routers leave": 1.0,
            "answers that spoilt routers change without gates": 0.5,
        },
    )
    config.mechanisms.path = mechanism(
        6,
        "ExpertFlow schedules experts ahead along predicted routing paths",
        "expertflow",
        "path",
        **{"unasked transfers that the forecast names": 0.99, "unasked transfers per step": 1.0},
    )
    config.mechanisms.correction = mechanism(
        7,
        "ExpertFlow corrects mispredictions while it runs, with prioritised swaps",
        "expertflow",
        "correction",
        **{"corrections ahead of all prefetches": 1.0, "corrections that swap": 0.99},
    )
    config.mechanisms.workflow = mechanism(
        8,
        "The cache engine schedules ahead, prefetches and offloads by predicted routing",
        "expertflow",
        "workflow",
        **{
            "steps forecast before they begin": 1.0,
            "unasked transfers there when their layer asks": 0.5,
            "victims less likely than most": 0.9,
        },
    )
    return config
