"""Qwen3-MoE (Qwen3 technical report, 2505.09388): q/k norm of each head, no shared expert."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

from expertflow_jax.models.causal_lm import CausalLMConfig
from expertflow_jax.models.config_section import Section, decoder_to_hf, read_decoder, sparse_layers


@dataclasses.dataclass(frozen=True)
class Qwen3MoeConfig(CausalLMConfig):
    """Architecture of one Qwen3-MoE model."""

    model_type: ClassVar[str] = "qwen3_moe"

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> "Qwen3MoeConfig":
        """Reads a parsed config.json; raises InputError naming the key."""
        section = Section(config)
        section.only("model_type", cls.model_type)
        bias = section.flag("attention_bias", False)
        window = section.whole("sliding_window", 4096, least=0) if section.flag("use_sliding_window", False) else 0
        text = read_decoder(
            section,
            **sparse_layers(section),
            norm_topk_prob=section.flag("norm_topk_prob", False),
            qk_norm="head",
            qkv_bias=bias,
            o_bias=bias,
            sliding_window=window,
            sliding_layers=tuple(range(section.whole("num_hidden_layers"))) if window else (),
            max_position_embeddings=32_768,
        )
        text.validate()
        return cls(text, section.flag("tie_word_embeddings", False))

    def to_hf(self) -> dict[str, Any]:
        """config.json as transformers 5.x reads it."""
        text = self.text
        return decoder_to_hf(text) | {
            "architectures": ["Qwen3MoeForCausalLM"],
            "model_type": self.model_type,
            "moe_intermediate_size": text.moe_intermediate_size,
            "intermediate_size": text.intermediate_size,
            "decoder_sparse_step": text.decoder_sparse_step,
            "mlp_only_layers": list(text.mlp_only_layers),
            "norm_topk_prob": text.norm_topk_prob,
            "attention_bias": text.qkv_bias,
            "use_sliding_window": bool(text.sliding_layers),
            "sliding_window": text.sliding_window or None,
            "tie_word_embeddings": self.tie_word_embeddings,
        }
