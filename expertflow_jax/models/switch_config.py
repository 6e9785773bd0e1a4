"""Config of Switch Transformers (2101.03961), an encoder and a decoder whose layers count as one list, encoder first.

The encoder's tokens and the decoder's form one sequence too: the prompt, then the start token and what follows. A token
goes through the layers of its own stack alone.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from expertflow_jax.errors import InputError
from expertflow_jax.models.causal_lm import CausalLMConfig
from expertflow_jax.models.config_section import Section
from expertflow_jax.models.decoder_config import DecoderConfig
from expertflow_jax.models.experts import ExpertKind
from expertflow_jax.models.layers import ACTIVATIONS

UNLIMITED = 1 << 20  # relative positions set no limit


@dataclasses.dataclass(frozen=True)
class SwitchStacks(DecoderConfig):
    """Both stacks; `num_hidden_layers` counts the layers of both. With a sparse step of 1 every layer of a stack has
    experts; with any other, those whose number in the stack leaves 1 when divided by it."""

    encoder_layers: int = 0
    encoder_sparse_step: int = 1
    sparse_encoder_layers: int = 0  # as config.json says; the steps count
    sparse_decoder_layers: int = 0
    expert_capacity: int = 64  # tokens of a sequence that an expert takes in one step; the router drops the others
    router_bias: bool = False
    buckets: int = 32  # of relative positions
    max_distance: int = 128  # from which on they fall into the last bucket

    @property
    def decoder_layers(self) -> int:
        """Layers of the decoder."""
        return self.num_hidden_layers - self.encoder_layers

    def decodes(self, layer: int) -> bool:
        """Whether `layer` is the decoder's."""
        return layer >= self.encoder_layers

    def is_moe(self, layer: int) -> bool:
        """Whether `layer` has experts."""
        if self.decodes(layer):
            layer, step = layer - self.encoder_layers, self.decoder_sparse_step
        else:
            step = self.encoder_sparse_step
        return step == 1 or layer % step == 1

    @property
    def cached_layers(self) -> tuple[bool, ...]:
        """The decoder's: keys and values of the encoder's output, then of the decoder's own tokens."""
        return tuple(self.decodes(layer) for layer in range(self.num_hidden_layers))

    @property
    def decode_layers(self) -> tuple[bool, ...]:
        """A decode step runs the decoder alone."""
        return self.cached_layers

    @property
    def expert_kind(self) -> ExpertKind:
        """Two matrices, no gate."""
        return ExpertKind(self.hidden_act, gated=False)


@dataclasses.dataclass(frozen=True)
class SwitchConfig(CausalLMConfig):
    """Architecture of one Switch Transformer.

    Attributes:
      tie_word_embeddings: as config.json says; scales what the head reads.
      own_tables: the files hold different tables for the stacks or the head all the same.
    """

    text: SwitchStacks
    decoder_start_token_id: int = 0
    own_tables: bool = False

    model_type: ClassVar[str] = "switch_transformers"

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> "SwitchConfig":
        """Reads a parsed config.json; raises InputError naming the key."""
        section = Section(config)
        section.only("model_type", cls.model_type)
        section.only("router_dtype", "float32")
        if section.flag("is_gated_act", False):
            raise InputError("config.json: is_gated_act: transformers has no gated Switch Transformers; want false")
        encoder = section.whole("num_layers", 12)
        decoder = section.whole("num_decoder_layers", encoder)
        sparse = [section.whole(f"num_sparse_{stack}_layers", 3, least=0) for stack in ("encoder", "decoder")]
        width, heads, inner = section.whole("d_model", 768), section.whole("num_heads", 12), section.whole("d_ff", 2048)
        text = SwitchStacks(
            vocab_size=section.whole("vocab_size", 32_128),
            hidden_size=width,
            num_hidden_layers=encoder + decoder,
            num_attention_heads=heads,
            num_key_value_heads=heads,
            head_dim=section.whole("d_kv", 64),
            num_experts=section.whole("num_experts", 8),
            num_experts_per_tok=1,
            moe_intermediate_size=inner,
            intermediate_size=inner,
            norm_topk_prob=False,
            hidden_act=section.text("dense_act_fn", "relu"),
            rms_norm_eps=section.number("layer_norm_epsilon", 1e-6),
            max_position_embeddings=UNLIMITED,
            encoder_layers=encoder,
            encoder_sparse_step=section.whole("encoder_sparse_step", max(1, encoder // (sparse[0] or 1))),
            decoder_sparse_step=section.whole("decoder_sparse_step", max(1, decoder // (sparse[1] or 1))),
            sparse_encoder_layers=sparse[0],
            sparse_decoder_layers=sparse[1],
            expert_capacity=section.whole("expert_capacity", 64),
            router_bias=section.flag("router_bias", False),
            buckets=section.whole("relative_attention_num_buckets", 32, least=4),
            max_distance=section.whole("relative_attention_max_distance", 128),
        )
        _validate(text)
        start = section.whole("decoder_start_token_id", section.whole("pad_token_id", 0))
        if start >= text.vocab_size:
            raise InputError(
                f"config.json: decoder_start_token_id: {start} is outside the vocabulary of {text.vocab_size}"
            )
        return cls(text, section.flag("tie_word_embeddings", True), start)

    @property
    def one_table(self) -> bool:
        """Whether both stacks and the head share one table."""
        return self.tie_word_embeddings and not self.own_tables

    def stack_positions(self, encoder_lengths: np.ndarray, lengths: np.ndarray, width: int) -> np.ndarray:
        """int32 [3, B, T]: from 0 on in the decoder, below 0 in the encoder, where -1 is its last token; 0 on padding.

        Args:
          encoder_lengths, lengths: int32 [B], tokens of the encoder, and of both.
          width: T.
        """
        step = np.arange(width, dtype=np.int32)
        places = np.where(step < lengths[:, None], step - encoder_lengths[:, None], 0).astype(np.int32)
        return np.broadcast_to(places, (3, *places.shape))

    def to_hf(self) -> dict[str, Any]:
        """config.json as transformers 5.x reads it."""
        text = self.text
        return {
            "architectures": ["SwitchTransformersForConditionalGeneration"],
            "model_type": self.model_type,
            "is_encoder_decoder": True,
            "vocab_size": text.vocab_size,
            "d_model": text.hidden_size,
            "d_kv": text.head_dim,
            "d_ff": text.moe_intermediate_size,
            "num_layers": text.encoder_layers,
            "num_decoder_layers": text.decoder_layers,
            "num_sparse_encoder_layers": text.sparse_encoder_layers,
            "num_sparse_decoder_layers": text.sparse_decoder_layers,
            "encoder_sparse_step": text.encoder_sparse_step,
            "decoder_sparse_step": text.decoder_sparse_step,
            "num_heads": text.num_attention_heads,
            "num_experts": text.num_experts,
            "expert_capacity": text.expert_capacity,
            "router_bias": text.router_bias,
            "router_dtype": "float32",
            "relative_attention_num_buckets": text.buckets,
            "relative_attention_max_distance": text.max_distance,
            "layer_norm_epsilon": text.rms_norm_eps,
            "dense_act_fn": text.hidden_act,
            "decoder_start_token_id": self.decoder_start_token_id,
            "tie_word_embeddings": self.tie_word_embeddings,
        }


def _validate(text: SwitchStacks) -> None:
    if text.hidden_act not in ACTIVATIONS:
        raise InputError(
            f"config.json: dense_act_fn: {text.hidden_act!r} is not supported; supported: {', '.join(ACTIVATIONS)}"
        )
    if not text.moe_layers:
        raise InputError(
            "config.json: num_sparse_encoder_layers, num_sparse_decoder_layers: leave no layer with experts"
        )
    for key, sparse, layers in (
        ("num_sparse_encoder_layers", text.sparse_encoder_layers, text.encoder_layers),
        ("num_sparse_decoder_layers", text.sparse_decoder_layers, text.decoder_layers),
    ):
        if sparse > layers:
            raise InputError(f"config.json: {key}: {sparse} is more than the {layers} layers of the stack")
    if text.max_distance <= text.buckets // 2:
        raise InputError(
            f"config.json: relative_attention_max_distance: {text.max_distance} must be above half of "
            f"relative_attention_num_buckets {text.buckets}"
        )
