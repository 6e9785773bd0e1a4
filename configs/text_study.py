"""Perplexity of any model on a user's own text, over policies and cache sizes.

    python -m eval.study --config=configs/text_study.py --config.model=DIR --config.predictor=DIR \\
        --config.data_dir=DATA --config.costs=FILE --workdir=OUT

DATA/text/val.jsonl holds one {"text": "..."} (or {"input_ids": [...]}) per line, or val.txt a document. `accuracy` is
the share of tokens that the model foretells; `perplexity` stands beside it. An encoder-decoder reads the first half of
each sequence and foretells the second. Costs come from eval.calibrate; with --config.clock=real none are needed, and
times are this machine's.
"""

import ml_collections

from configs import study_base

FRACTIONS = (0.25, 0.5, 0.75)


def get_config() -> ml_collections.ConfigDict:
    """Returns the config."""
    config = study_base.get_config()
    config.tasks = ("text",)
    config.data_dir = "data"
    config.grids.lossless = study_base.grid(
        ("resident", "on_demand", "cache_moe", "expertflow", "oracle"), cache_fractions=FRACTIONS
    )
    config.grids.lossy = study_base.grid(("cache_moe", "expertflow"), ("fifo",), ("drop", "substitute"), FRACTIONS)
    return config
