"""The quickstart's question on a benchmark that somebody else made: easy-VQA's published test split.

    pip install easy-vqa
    python -m eval.study --config=configs/easy_vqa_study.py --workdir=runs/easy_vqa

Model and predictor are committed. Questions are a random sample of whole images. The model has the shapes of the digit
scenes' model, so the costs and the link are those of the quickstart.
"""

import ml_collections

from configs import study_base

FRACTIONS = (0.25, 0.5)
CAREFUL = (
    "drop_weak(below=1, phase='both')",
    "cache_prior(strength=0.2, top_j=0)",
    "low_precision(bits=8, t1=-1, t2=1)",
)


def get_config() -> ml_collections.ConfigDict:
    """Returns the config."""
    config = study_base.get_config()
    grid = study_base.grid
    config.model = "easy_vqa_moe"
    config.predictor = "easy_vqa_predictor"
    config.benchmark = "easy_vqa"
    config.tasks = ("vqa_v2",)
    config.num_examples = 320  # about ten to an image
    config.sample_seed = 0
    config.grids.policies = grid(
        ("resident", "on_demand", "cache_moe", "moe_infinity", "expertflow", "oracle"), cache_fractions=FRACTIONS
    )
    config.grids.schedulers = grid(("expertflow",), ("random", "greedy"), cache_fractions=(0.5,))
    config.grids.lossy = grid(("cache_moe", "expertflow"), ("fifo",), ("drop", "substitute"), (0.5,))
    config.grids.careful = grid(("expertflow",), ("fifo",), CAREFUL, (0.5,))
    config.grids.blind = grid(("resident",), cache_fractions=(1.0,), tasks=("vqa_v2_blind",))
    config.grids.blocks = grid(("cache_moe", "expertflow"), cache_fractions=(0.25,), batches_per_block=(8,))
    return config
