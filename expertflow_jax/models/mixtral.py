"""Mixtral (2401.04088): few large experts, sliding window over all layers where the config has one."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

from expertflow_jax.models.causal_lm import CausalLMConfig
from expertflow_jax.models.config_section import Section, decoder_to_hf, read_decoder


@dataclasses.dataclass(frozen=True)
class MixtralConfig(CausalLMConfig):
    """Architecture of one Mixtral model."""

    model_type: ClassVar[str] = "mixtral"

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> "MixtralConfig":
        """Reads a parsed config.json; raises InputError naming the key."""
        section = Section(config)
        section.only("model_type", cls.model_type)
        window = section.whole("sliding_window", 0, least=0)
        text = read_decoder(
            section,
            moe_intermediate_size=section.whole("intermediate_size"),
            sliding_window=window,
            sliding_layers=tuple(range(section.whole("num_hidden_layers"))) if window else (),
            rms_norm_eps=1e-5,
            rope_theta=1e6,
            max_position_embeddings=131_072,
        )
        text.validate()
        return cls(text, section.flag("tie_word_embeddings", False))

    def to_hf(self) -> dict[str, Any]:
        """config.json as transformers 5.x reads it."""
        values = decoder_to_hf(self.text)
        values["num_local_experts"] = values.pop("num_experts")
        return values | {
            "architectures": ["MixtralForCausalLM"],
            "model_type": self.model_type,
            "intermediate_size": self.text.moe_intermediate_size,
            "sliding_window": self.text.sliding_window or None,
            "tie_word_embeddings": self.tie_word_embeddings,
        }
