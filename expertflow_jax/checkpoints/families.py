"""The model families, by `model_type`: config, module and name table. A new family is one more entry."""

import dataclasses
from typing import Any

from expertflow_jax.checkpoints import aria, mixtral, olmoe, qwen2_moe, qwen3_moe, qwen3_vl_moe, switch_transformers
from expertflow_jax.checkpoints.names import DecoderNames
from expertflow_jax.models.aria import Aria
from expertflow_jax.models.aria_config import AriaConfig
from expertflow_jax.models.causal_lm import CausalLM, ModelConfig
from expertflow_jax.models.mixtral import MixtralConfig
from expertflow_jax.models.olmoe import OlmoeConfig
from expertflow_jax.models.qwen2_moe import Qwen2MoeConfig
from expertflow_jax.models.qwen3_moe import Qwen3MoeConfig
from expertflow_jax.models.qwen3_vl_moe import Qwen3VLMoe, Qwen3VLMoeConfig
from expertflow_jax.models.switch_config import SwitchConfig
from expertflow_jax.models.switch_transformers import SwitchTransformers


@dataclasses.dataclass(frozen=True)
class Family:
    """One family.

    Attributes:
      config: class with `from_hf`, `model_type`, and what `ModelConfig` asks.
      module: class made as `module(config, rngs=..., dtype=..., with_experts=...)`.
      names: its name table.
    """

    config: Any
    module: Any
    names: DecoderNames


FAMILIES: dict[str, Family] = {
    family.config.model_type: family
    for family in (
        Family(MixtralConfig, CausalLM, mixtral.NAMES),
        Family(OlmoeConfig, CausalLM, olmoe.NAMES),
        Family(Qwen2MoeConfig, CausalLM, qwen2_moe.NAMES),
        Family(Qwen3MoeConfig, CausalLM, qwen3_moe.NAMES),
        Family(Qwen3VLMoeConfig, Qwen3VLMoe, qwen3_vl_moe.NAMES),
        Family(AriaConfig, Aria, aria.NAMES),
        Family(SwitchConfig, SwitchTransformers, switch_transformers.NAMES),
    )
}


def family_of(config: ModelConfig) -> Family:
    """The family that a config belongs to."""
    return next(family for family in FAMILIES.values() if isinstance(config, family.config))
