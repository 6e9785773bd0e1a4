"""Qwen3-VL-MoE (Qwen3-VL technical report, 2511.21631; the block is Qwen3-MoE's): vision tower, interleaved M-RoPE,
grouped-query attention with q/k norm, top-k softmax router, SwiGLU experts, DeepStack.

Axes: G frames, Q patches per frame, N image tokens, n DeepStack levels, D model width.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from expertflow_jax.models import vision, vision_layout
from expertflow_jax.models.causal_lm import CausalLM
from expertflow_jax.models.qwen3_vl_config import Qwen3VLMoeConfig, VisionConfig

__all__ = ["Qwen3VLMoe", "Qwen3VLMoeConfig", "VisionConfig", "same_size_positions"]


class Qwen3VLMoe(CausalLM):
    """The model: `CausalLM` with a vision tower, `vision`."""

    def __init__(
        self,
        config: Qwen3VLMoeConfig,
        *,
        rngs: nnx.Rngs,
        dtype: Any = jnp.float32,
        with_experts: bool = True,
    ):
        self.vision = vision.VisionTower(config.vision, dtype=jnp.dtype(dtype), rngs=rngs)
        super().__init__(config, rngs=rngs, dtype=dtype, with_experts=with_experts)

    def vision_stage(self, pixel_values: jax.Array, where: vision.VisionPositions) -> tuple[jax.Array, jax.Array]:
        """Patches [G, Q, patch_dim] with their positions (`vision_inputs`) to [N, D] and DeepStack [n, N, D]."""
        return self.vision(pixel_values, where)


def same_size_positions(config: Qwen3VLMoeConfig, high: int, wide: int) -> dict[str, np.ndarray | None]:
    """See `vision_layout.same_size_positions`."""
    return vision_layout.same_size_positions(config.vision, high, wide)
