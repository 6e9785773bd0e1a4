"""A checkpoint of random weights, of any size, in shards."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
from random_module import random_module

from expertflow_jax.checkpoints import save_hf
from expertflow_jax.models.causal_lm import CausalLM
from expertflow_jax.models.qwen3_moe import Qwen3MoeConfig

D_MODEL, D_FF, LAYERS = 256, 512, 4


def write_random_checkpoint(directory: Path, mebibytes: int, dtype: str) -> int:
    """Writes a Qwen3-MoE whose experts take about `mebibytes`; returns the bytes of all tensors."""
    itemsize = jnp.dtype(dtype).itemsize
    config = Qwen3MoeConfig.from_hf(
        {
            "model_type": "qwen3_moe",
            "vocab_size": 128,
            "hidden_size": D_MODEL,
            "intermediate_size": D_FF,
            "moe_intermediate_size": D_FF,
            "num_hidden_layers": LAYERS,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 64,
            "num_experts": mebibytes * 2**20 // (LAYERS * 3 * D_MODEL * D_FF * itemsize),
            "num_experts_per_tok": 2,
        }
    )
    module = random_module(CausalLM, config, dtype=jnp.dtype(dtype))
    save_hf(directory, config, module, np.dtype(jnp.dtype(dtype)))
    return sum(file.stat().st_size for file in directory.glob("*.safetensors"))
