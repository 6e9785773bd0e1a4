"""Configuration of Qwen3-VL-MoE, read from and written as Hugging Face's config.json (4.57 and 5.x spellings)."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from expertflow_jax.errors import InputError
from expertflow_jax.models import rope, vision_layout
from expertflow_jax.models.config_section import Section, decoder_to_hf, read_decoder, rope_section, sparse_layers
from expertflow_jax.models.decoder_config import DecoderConfig


@dataclasses.dataclass(frozen=True)
class VisionConfig:
    """The vision tower. Names are Hugging Face's."""

    depth: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    out_hidden_size: int
    patch_size: int = 16
    temporal_patch_size: int = 2
    spatial_merge_size: int = 2
    in_channels: int = 3
    num_position_embeddings: int = 2304  # a square grid
    deepstack_visual_indexes: tuple[int, ...] = (8, 16, 24)
    rope_theta: float = 10_000.0

    @property
    def patch_dim(self) -> int:
        """Numbers per patch: channels * temporal_patch_size * patch_size ** 2."""
        return self.in_channels * self.temporal_patch_size * self.patch_size**2

    @property
    def feature_levels(self) -> int:
        """DeepStack levels."""
        return len(self.deepstack_visual_indexes)

    def image_tokens(self, grid: np.ndarray) -> int:
        """Tokens of an image of `grid` patches in time, height and width."""
        return int(np.prod(grid)) // self.spatial_merge_size**2

    def most_tokens(self, patches: int) -> int:
        """Tokens that so many patches become."""
        return patches // self.spatial_merge_size**2

    def most_patches(self, image_tokens: int) -> int:
        """Patches that so many image tokens stand for."""
        return image_tokens * self.spatial_merge_size**2

    def activation_bytes(self, patches: int, image_patches: int, itemsize: int) -> int:
        """One block's activations of all patches, and attention within the largest image in float32."""
        tower = patches * (2 * self.patch_dim + 6 * self.hidden_size + 2 * self.intermediate_size)
        return itemsize * tower + 2 * patches * image_patches * self.num_heads * 4

    def pack(
        self, pixel_values: np.ndarray, image_grid_thw: np.ndarray | None, pixel_mask: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Patches as they are; raises InputError without grids, or with a mask."""
        if image_grid_thw is None or pixel_mask is not None:
            raise InputError("pixel_values: the model takes them with image_grid_thw, and without pixel_mask")
        return np.asarray(pixel_values), np.asarray(image_grid_thw)


@dataclasses.dataclass(frozen=True)
class Qwen3VLMoeConfig:
    """Architecture of one Qwen3-VL-MoE model; a small one and the 30B-A3B differ only in these numbers."""

    model_type: ClassVar[str] = "qwen3_vl_moe"

    text: DecoderConfig
    vision: VisionConfig
    image_token_id: int
    video_token_id: int
    vision_start_token_id: int
    vision_end_token_id: int
    tie_word_embeddings: bool = False

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> "Qwen3VLMoeConfig":
        """Reads a parsed config.json.

        Raises:
          InputError: naming the key that is missing, of the wrong type or not supported.
        """
        top = Section(config)
        top.only("model_type", cls.model_type)
        text = _text_config(Section(config, "text_config"))
        vision = _vision_config(Section(config, "vision_config"))
        result = cls(
            text,
            vision,
            image_token_id=top.whole("image_token_id", 151655),
            video_token_id=top.whole("video_token_id", 151656),
            vision_start_token_id=top.whole("vision_start_token_id", 151652),
            vision_end_token_id=top.whole("vision_end_token_id", 151653),
            tie_word_embeddings=top.flag("tie_word_embeddings", False),
        )
        result.validate()
        return result

    def validate(self) -> None:
        """Checks that the numbers fit together.

        Raises:
          InputError: naming the key.
        """
        text, vision = self.text, self.vision
        text.validate("text_config")
        checks = [
            (bool(text.mrope_section), "text_config.rope_parameters.mrope_section", "is empty"),
            (
                vision.hidden_size % (4 * vision.num_heads) == 0,
                "vision_config.num_heads",
                f"hidden_size {vision.hidden_size} must be a multiple of 4 * num_heads {vision.num_heads}",
            ),
            (
                round(vision.num_position_embeddings**0.5) ** 2 == vision.num_position_embeddings,
                "vision_config.num_position_embeddings",
                f"{vision.num_position_embeddings} is not a square",
            ),
            (
                vision.out_hidden_size == text.hidden_size,
                "vision_config.out_hidden_size",
                f"{vision.out_hidden_size} differs from text_config.hidden_size {text.hidden_size}",
            ),
            (
                all(0 <= i < vision.depth for i in vision.deepstack_visual_indexes),
                "vision_config.deepstack_visual_indexes",
                f"outside 0..{vision.depth - 1}",
            ),
            (
                len(vision.deepstack_visual_indexes) <= text.num_hidden_layers,
                "vision_config.deepstack_visual_indexes",
                "more entries than decoder layers",
            ),
            (
                self.image_token_id < text.vocab_size,
                "image_token_id",
                f"{self.image_token_id} is outside the vocabulary of {text.vocab_size}",
            ),
        ]
        for good, key, what in checks:
            if not good:
                raise InputError(f"config.json: {key}: {what}")

    def positions(
        self, input_ids: np.ndarray, lengths: np.ndarray, grid_thw: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """See `rope.image_positions`."""
        return rope.image_positions(
            input_ids,
            lengths,
            grid_thw,
            image_token_id=self.image_token_id,
            video_token_id=self.video_token_id,
            merge=self.vision.spatial_merge_size,
        )

    def vision_inputs(self, pixel_values: np.ndarray, grid_thw: np.ndarray) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """See `vision_layout.vision_inputs`."""
        return vision_layout.vision_inputs(self.vision, pixel_values, grid_thw)

    def to_hf(self) -> dict[str, Any]:
        """config.json as transformers 5.x reads it (4.57 spellings of the rotary keys beside it)."""
        text = decoder_to_hf(self.text)
        rope_parameters = text["rope_parameters"] | {
            "mrope_section": list(self.text.mrope_section),
            "mrope_interleaved": True,
        }
        text |= {
            "moe_intermediate_size": self.text.moe_intermediate_size,
            "intermediate_size": self.text.intermediate_size,
            "decoder_sparse_step": self.text.decoder_sparse_step,
            "mlp_only_layers": list(self.text.mlp_only_layers),
            "attention_bias": self.text.qkv_bias,
            "model_type": "qwen3_vl_moe_text",
            "norm_topk_prob": True,
            "rope_theta": self.text.rope_theta,
            "rope_scaling": {key: value for key, value in rope_parameters.items() if key != "rope_theta"},
            "rope_parameters": rope_parameters,
            "tie_word_embeddings": self.tie_word_embeddings,
        }
        if shared := self.text.shared_expert_intermediate_size:
            text["shared_expert_intermediate_size"] = shared
        vision = dataclasses.asdict(self.vision)
        vision |= {
            "model_type": "qwen3_vl_moe_vision",
            "hidden_act": "gelu_pytorch_tanh",
            "deepstack_visual_indexes": list(self.vision.deepstack_visual_indexes),
            "rope_parameters": {"rope_type": "axial", "rope_theta": vision.pop("rope_theta")},
        }
        return {
            "architectures": ["Qwen3VLMoeForConditionalGeneration"],
            "model_type": self.model_type,
            "text_config": text,
            "vision_config": vision,
            "image_token_id": self.image_token_id,
            "video_token_id": self.video_token_id,
            "vision_start_token_id": self.vision_start_token_id,
            "vision_end_token_id": self.vision_end_token_id,
            "tie_word_embeddings": self.tie_word_embeddings,
        }


def _text_config(section: Section) -> DecoderConfig:
    bias, rope = section.flag("attention_bias", False), rope_section(section)
    shared = section.whole("shared_expert_intermediate_size", 0, least=0)  # ours alone: published models have none
    decoder = read_decoder(
        section,
        **sparse_layers(section),
        # transformers renormalises in this family whatever `norm_topk_prob` says, so we do too.
        norm_topk_prob=True,
        qk_norm="head",
        shared_expert_intermediate_size=shared,
        shared_expert_gate=shared > 0,
        qkv_bias=bias,
        o_bias=bias,
        rope_theta=500_000.0,
        mrope_section=rope.wholes("mrope_section", (24, 20, 20)),
    )
    turned = sum(decoder.mrope_section)
    half = decoder.head_dim // 2
    if rope.get("mrope_section") is not None and turned != half:
        raise InputError(
            f"config.json: {rope.key('mrope_section')} adds up to {turned}, expected half of head_dim, {half}"
        )
    return decoder


def _vision_config(section: Section) -> VisionConfig:
    section.only("hidden_act", "gelu_pytorch_tanh")
    rope = section.values.get("rope_parameters")
    theta = Section(section.values, "rope_parameters").number("rope_theta", 10_000.0) if rope else 10_000.0
    return VisionConfig(
        depth=section.whole("depth"),
        hidden_size=section.whole("hidden_size"),
        intermediate_size=section.whole("intermediate_size"),
        num_heads=section.whole("num_heads"),
        out_hidden_size=section.whole("out_hidden_size"),
        patch_size=section.whole("patch_size", 16),
        temporal_patch_size=section.whole("temporal_patch_size", 2),
        spatial_merge_size=section.whole("spatial_merge_size", 2),
        in_channels=section.whole("in_channels", 3),
        num_position_embeddings=section.whole("num_position_embeddings", 2304),
        deepstack_visual_indexes=section.wholes("deepstack_visual_indexes", (8, 16, 24)),
        rope_theta=theta,
    )
