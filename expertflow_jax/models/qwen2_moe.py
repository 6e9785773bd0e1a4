"""Qwen2-MoE (Qwen1.5-MoE-A2.7B, Qwen2-57B-A14B; Qwen2 technical report, 2407.10671): a shared expert with a gate,
top-k weights that need not sum to one, biases on queries, keys and values."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

from expertflow_jax.errors import InputError
from expertflow_jax.models.causal_lm import CausalLMConfig
from expertflow_jax.models.config_section import Section, decoder_to_hf, read_decoder, sparse_layers

SLIDING, FULL = "sliding_attention", "full_attention"


@dataclasses.dataclass(frozen=True)
class Qwen2MoeConfig(CausalLMConfig):
    """Architecture of one Qwen2-MoE model."""

    model_type: ClassVar[str] = "qwen2_moe"

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> "Qwen2MoeConfig":
        """Reads a parsed config.json; raises InputError naming the key."""
        section = Section(config)
        section.only("model_type", cls.model_type)
        sliding = section.flag("use_sliding_window", False)
        text = read_decoder(
            section,
            **sparse_layers(section),
            shared_expert_intermediate_size=section.whole("shared_expert_intermediate_size", 5632),
            shared_expert_gate=True,
            norm_topk_prob=section.flag("norm_topk_prob", False),
            qkv_bias=section.flag("qkv_bias", True),
            sliding_window=section.whole("sliding_window", 4096, least=0) if sliding else 0,
            sliding_layers=_sliding_layers(section, sliding),
            max_position_embeddings=32_768,
        )
        text.validate()
        return cls(text, section.flag("tie_word_embeddings", False))

    def to_hf(self) -> dict[str, Any]:
        """config.json as transformers 5.x reads it."""
        text = self.text
        kinds = [SLIDING if i in text.sliding_layers else FULL for i in range(text.num_hidden_layers)]
        return decoder_to_hf(text) | {
            "architectures": ["Qwen2MoeForCausalLM"],
            "model_type": self.model_type,
            "moe_intermediate_size": text.moe_intermediate_size,
            "intermediate_size": text.intermediate_size,
            "shared_expert_intermediate_size": text.shared_expert_intermediate_size,
            "decoder_sparse_step": text.decoder_sparse_step,
            "mlp_only_layers": list(text.mlp_only_layers),
            "norm_topk_prob": text.norm_topk_prob,
            "qkv_bias": text.qkv_bias,
            "use_sliding_window": bool(text.sliding_layers),
            "sliding_window": text.sliding_window,
            "layer_types": kinds,
            "tie_word_embeddings": self.tie_word_embeddings,
        }


def _sliding_layers(section: Section, sliding: bool) -> tuple[int, ...]:
    """Those that `layer_types` names, or else every other one below `max_window_layers`."""
    count = section.whole("num_hidden_layers")
    kinds = section.get("layer_types")
    if kinds is None:
        below = min(count, section.whole("max_window_layers", 28, least=0))
        return tuple(range(0, below, 2)) if sliding else ()
    if not isinstance(kinds, list) or len(kinds) != count or any(kind not in (SLIDING, FULL) for kind in kinds):
        raise InputError(f"config.json: layer_types: want {SLIDING!r} or {FULL!r} for each of {count} layers")
    return tuple(i for i, kind in enumerate(kinds) if kind == SLIDING)
