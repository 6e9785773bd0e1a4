"""OLMoE (2409.02060): RMS norm over all heads' queries and keys at once, top-k weights that need not sum to one."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

from expertflow_jax.errors import InputError
from expertflow_jax.models.causal_lm import CausalLMConfig
from expertflow_jax.models.config_section import Section, decoder_to_hf, read_decoder


@dataclasses.dataclass(frozen=True)
class OlmoeConfig(CausalLMConfig):
    """Architecture of one OLMoE model."""

    model_type: ClassVar[str] = "olmoe"

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> "OlmoeConfig":
        """Reads a parsed config.json; raises InputError naming the key."""
        section = Section(config)
        section.only("model_type", cls.model_type)
        bias = section.flag("attention_bias", False)
        text = read_decoder(
            section,
            moe_intermediate_size=section.whole("intermediate_size"),
            norm_topk_prob=section.flag("norm_topk_prob", False),
            qk_norm="projection",
            clip_qkv=None if section.get("clip_qkv") is None else section.number("clip_qkv"),
            qkv_bias=bias,
            o_bias=bias,
            rms_norm_eps=1e-5,
            max_position_embeddings=4096,
        )
        text.validate()
        if text.head_dim * text.num_attention_heads != text.hidden_size:
            raise InputError(f"config.json: head_dim: {text.head_dim} is not hidden_size / num_attention_heads")
        return cls(text, section.flag("tie_word_embeddings", False))

    def to_hf(self) -> dict[str, Any]:
        """config.json as transformers 5.x reads it."""
        text = self.text
        return decoder_to_hf(text) | {
            "architectures": ["OlmoeForCausalLM"],
            "model_type": self.model_type,
            "intermediate_size": text.moe_intermediate_size,
            "norm_topk_prob": text.norm_topk_prob,
            "attention_bias": text.qkv_bias,
            "clip_qkv": text.clip_qkv,
            "tie_word_embeddings": self.tie_word_embeddings,
        }
