"""A random Aria of a few thousand parameters with the tokenizer of the digit scenes, as a checkpoint directory."""

import json
from pathlib import Path

import numpy as np
from random_module import random_module

from expertflow_jax.checkpoints import save_hf
from expertflow_jax.models.aria import Aria
from expertflow_jax.models.aria_config import AriaConfig
from expertflow_jax.tasks import word_processor
from expertflow_jax.tasks.digit_scenes.processor_files import PROCESSOR

PATCH, IMAGE_SIZE, IMAGE_TOKENS = 70, 490, 4


def write_aria(directory: Path, seed: int = 0) -> AriaConfig:
    """Writes weights, config and processor; returns the config."""
    PROCESSOR.write(directory)
    tokenizer = PROCESSOR.build_tokenizer()
    config = AriaConfig.from_hf(
        {
            "model_type": "aria",
            "text_config": {
                "model_type": "aria_text",
                "vocab_size": PROCESSOR.vocab_size(),
                "hidden_size": 32,
                "intermediate_size": 16,
                "num_hidden_layers": 3,
                "num_attention_heads": 4,
                "num_key_value_heads": 2,
                "max_position_embeddings": 128,
                "moe_num_experts": 8,
                "moe_topk": 2,
            },
            "vision_config": {
                "model_type": "idefics3_vision",
                "hidden_size": 16,
                "intermediate_size": 20,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "image_size": IMAGE_SIZE,
                "patch_size": PATCH,
            },
            "projector_patch_to_query_dict": {"49": IMAGE_TOKENS, "196": 8},
            "image_token_index": tokenizer.token_to_id(word_processor.IMAGE_PAD),
        }
    )
    save_hf(directory, config, random_module(Aria, config, seed=seed), np.float32)
    settings = {"image_processor_type": "AriaImageProcessor", "max_image_size": IMAGE_SIZE}
    (directory / "preprocessor_config.json").write_text(json.dumps(settings) + "\n")
    sizes = {"processor_class": "AriaProcessor", "size_conversion": {"490": IMAGE_TOKENS, "980": 8}}
    (directory / "processor_config.json").write_text(json.dumps(sizes) + "\n")
    return config
