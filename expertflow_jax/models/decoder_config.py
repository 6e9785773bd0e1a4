"""The numbers that make a text decoder, whatever family it is of; each family reads them from its own config.json."""

import dataclasses
from typing import Any, Literal

from expertflow_jax.errors import InputError
from expertflow_jax.models.experts import ExpertKind, ExpertLayout
from expertflow_jax.models.layers import ACTIVATIONS
from expertflow_jax.models.rope_scaling import UNSCALED, RopeScaling


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """A decoder with rotary positions and a top-k router. Names are Hugging Face's where families agree on one."""

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    num_experts: int
    num_experts_per_tok: int
    moe_intermediate_size: int
    intermediate_size: int = 0  # width of layers without experts; unused when every layer has experts
    shared_expert_intermediate_size: int = 0  # width of the expert that every token goes through; 0: there is none
    shared_expert_gate: bool = False  # whether a sigmoid of the token scales the shared expert
    decoder_sparse_step: int = 1  # a layer has experts when (index + 1) % decoder_sparse_step == 0
    mlp_only_layers: tuple[int, ...] = ()
    norm_topk_prob: bool = True  # weights of the chosen experts sum to one
    hidden_act: str = "silu"
    rms_norm_eps: float = 1e-6
    qk_norm: Literal["none", "head", "projection"] = "none"  # RMS norm of queries and keys: each head's, or all at once
    clip_qkv: float | None = None  # queries, keys and values are clipped to +- this
    qkv_bias: bool = False
    o_bias: bool = False
    sliding_window: int = 0  # tokens that a layer of `sliding_layers` looks back at, itself included
    sliding_layers: tuple[int, ...] = ()
    rope_theta: float = 10_000.0
    rope_scaling: RopeScaling = UNSCALED
    mrope_section: tuple[int, ...] = ()  # frequencies of time, height and width; empty: plain positions
    max_position_embeddings: int = 128_000

    def is_moe(self, layer: int) -> bool:
        """Whether decoder layer `layer` has experts."""
        return layer not in self.mlp_only_layers and (layer + 1) % self.decoder_sparse_step == 0

    @property
    def moe_layers(self) -> tuple[int, ...]:
        """Indices of the decoder layers that have experts."""
        return tuple(i for i in range(self.num_hidden_layers) if self.is_moe(i))

    @property
    def cached_layers(self) -> tuple[bool, ...]:
        """Whether each layer keeps keys and values."""
        return (True,) * self.num_hidden_layers

    @property
    def decode_layers(self) -> tuple[bool, ...]:
        """Whether each layer runs in decode steps; all run on prompts."""
        return (True,) * self.num_hidden_layers

    @property
    def context(self) -> int:
        """Tokens that a sequence may have. Published recipes leave `max_position_embeddings` at the length before the
        scaling, and transformers refuses no length; so the scaling's reach counts where it is longer."""
        return max(self.max_position_embeddings, self.rope_scaling.reach(self.max_position_embeddings))

    def window(self, layer: int) -> int:
        """How many tokens decoder layer `layer` looks back at; 0: all."""
        return self.sliding_window if layer in self.sliding_layers else 0

    @property
    def expert_kind(self) -> ExpertKind:
        """The maths of one expert."""
        return ExpertKind(self.hidden_act)

    def expert_layout(self, dtype: Any) -> ExpertLayout:
        """Of which arrays one expert consists."""
        return ExpertLayout(self.hidden_size, self.moe_intermediate_size, dtype, self.expert_kind)

    def validate(self, section: str = "") -> None:
        """Checks that the numbers fit together.

        Args:
          section: of config.json that they stand in, as messages name it.

        Raises:
          InputError: naming the key.
        """
        checks = [
            (
                self.num_attention_heads % self.num_key_value_heads == 0,
                "num_key_value_heads",
                f"{self.num_key_value_heads} does not divide num_attention_heads {self.num_attention_heads}",
            ),
            (self.head_dim % 2 == 0, "head_dim", f"{self.head_dim} is odd"),
            (
                self.rope_scaling.kind != "dynamic" or self.head_dim > 2,
                "head_dim",
                f"{self.head_dim} is too small for dynamic scaling",
            ),
            (
                self.num_experts_per_tok <= self.num_experts,
                "num_experts_per_tok",
                f"{self.num_experts_per_tok} is more than num_experts {self.num_experts}",
            ),
            (bool(self.moe_layers), "mlp_only_layers", "leaves no layer with experts"),
            (
                len(self.moe_layers) == self.num_hidden_layers or self.intermediate_size > 0,
                "intermediate_size",
                "must be positive when some layers have no experts",
            ),
            (
                self.hidden_act in ACTIVATIONS,
                "hidden_act",
                f"{self.hidden_act!r} is not supported; supported: {', '.join(ACTIVATIONS)}",
            ),
            (not self.sliding_layers or self.sliding_window > 0, "sliding_window", "must be positive where it is used"),
            (
                len(self.mrope_section) in (0, 3),
                "rope_parameters.mrope_section",
                f"needs 3 numbers, has {len(self.mrope_section)}",
            ),
        ]
        for good, key, what in checks:
            if not good:
                raise InputError(f"config.json: {section and section + '.'}{key}: {what}")
