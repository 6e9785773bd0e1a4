"""Configuration of Aria (2410.05993), read from and written as Hugging Face's config.json (4.x and 5.x spellings).

Files leave out what equals the defaults of transformers' classes, so those are stated here.
"""

import dataclasses
import operator
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from expertflow_jax.errors import InputError, brief
from expertflow_jax.models import aria_layout, rope
from expertflow_jax.models.config_section import WIDTH, Section, decoder_to_hf, read_decoder
from expertflow_jax.models.decoder_config import DecoderConfig
from expertflow_jax.models.experts import ExpertKind
from expertflow_jax.models.layers import ACTIVATIONS
from expertflow_jax.models.vision_layout import bucket

TEXT_DEFAULTS = {
    "vocab_size": 32_000,
    "hidden_size": 4096,
    "intermediate_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
}
VISION_DEFAULTS = {
    "hidden_size": 1152,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 16,
    "num_channels": 3,
    "image_size": 224,
    "patch_size": 32,
}
QUERIES = {1225: 128, 4900: 256}


@dataclasses.dataclass(frozen=True)
class AriaText(DecoderConfig):
    """The decoder. Its experts are gated by SiLU, whatever `hidden_act`, which is the shared expert's, says."""

    @property
    def expert_kind(self) -> ExpertKind:
        """The maths of one expert."""
        return ExpertKind("silu")


@dataclasses.dataclass(frozen=True)
class AriaVision:
    """The vision tower (Idefics3's) and the projector. Names are Hugging Face's where it has one."""

    num_hidden_layers: int
    hidden_size: int
    intermediate_size: int
    num_attention_heads: int
    out_hidden_size: int  # the decoder's width
    num_channels: int = 3
    image_size: int = 980
    patch_size: int = 14
    hidden_act: str = "gelu_pytorch_tanh"
    layer_norm_eps: float = 1e-6
    queries: tuple[tuple[int, int], ...] = tuple(QUERIES.items())  # patches of an image, and tokens that it becomes
    learned_queries: int = 256
    feature_layer: int = -1  # which layer's output is projected, the patch embeddings counting as the first

    @property
    def side(self) -> int:
        """Learned positions to a side."""
        return self.image_size // self.patch_size

    @property
    def patch_dim(self) -> int:
        """Numbers per patch: channels * patch_size ** 2, and one that is 0, or 1 on padding."""
        return self.num_channels * self.patch_size**2 + 1

    @property
    def feature_levels(self) -> int:
        """Nothing is added after decoder layers."""
        return 0

    @property
    def layers_run(self) -> int:
        """Layers up to the one whose output is projected."""
        return self.feature_layer + (self.num_hidden_layers + 1 if self.feature_layer < 0 else 0)

    def image_tokens(self, grid: np.ndarray) -> int:
        """Tokens of an image of `grid` patches in time, height and width, padding included.

        Raises:
          InputError: the projector has no queries for so many patches.
        """
        patches = int(np.prod(grid))
        queries = dict(self.queries)
        if patches not in queries:
            raise InputError(
                f"an image of {patches} patches: projector_patch_to_query_dict in config.json knows "
                f"{', '.join(map(str, queries))}; pad images as the checkpoint's processor does"
            )
        return queries[patches]

    def most_tokens(self, patches: int) -> int:
        """Tokens that so many patches become at most."""
        return max(-(-patches * queries // each) for each, queries in self.queries)

    def most_patches(self, image_tokens: int) -> int:
        """Patches that so many image tokens stand for at most."""
        return max(-(-image_tokens * each // queries) for each, queries in self.queries)

    def activation_bytes(self, patches: int, image_patches: int, itemsize: int) -> int:
        """All pixels; of the largest image, one block's activations and one head's attention in float32."""
        sizes = [each for each, _ in self.queries]
        largest = max((each for each in sizes if each <= patches), default=0)
        if image_patches in sizes:
            largest = image_patches
        if not largest:
            return 0
        length, images = bucket(largest, 1), bucket(-(-patches // min(sizes)), 1)
        pixels = 2 * bucket(-(-patches // largest), 1) * length * self.patch_dim * 4
        block = length * (8 * self.hidden_size + 2 * self.intermediate_size)
        projected = self.learned_queries * (6 * self.hidden_size + (3 + images) * self.out_hidden_size)
        return pixels + itemsize * (block + projected) + 3 * length**2 * 4

    def pack(
        self, pixel_values: np.ndarray, image_grid_thw: np.ndarray | None, pixel_mask: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """See `aria_layout.pack`; patches that are packed already pass through with their grid."""
        if image_grid_thw is not None:
            return np.asarray(pixel_values), np.asarray(image_grid_thw)
        return aria_layout.pack(pixel_values, pixel_mask, channels=self.num_channels, patch_size=self.patch_size)


@dataclasses.dataclass(frozen=True)
class AriaConfig:
    """Architecture of one Aria model."""

    model_type: ClassVar[str] = "aria"

    text: AriaText
    vision: AriaVision
    image_token_id: int = 9
    tie_word_embeddings: bool = False

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> "AriaConfig":
        """Reads a parsed config.json.

        Raises:
          InputError: naming the key that is missing, of the wrong type or not supported.
        """
        top = Section(config)
        top.only("model_type", cls.model_type)
        text = _text_config(_with_defaults(config, "text_config", TEXT_DEFAULTS))
        vision = _vision_config(top, _with_defaults(config, "vision_config", VISION_DEFAULTS), text.hidden_size)
        key = "image_token_index" if "image_token_index" in top.values else "image_token_id"
        result = cls(text, vision, top.whole(key, 9, least=0), top.flag("tie_word_embeddings", False))
        result.validate()
        return result

    def validate(self) -> None:
        """Checks that the numbers fit together.

        Raises:
          InputError: naming the key.
        """
        text, vision = self.text, self.vision
        checks = [
            (
                text.num_experts_per_tok <= text.num_experts,
                "text_config.moe_topk",
                f"{text.num_experts_per_tok} is more than moe_num_experts {text.num_experts}",
            ),
            (
                vision.hidden_size % vision.num_attention_heads == 0,
                "vision_config.num_attention_heads",
                f"{vision.num_attention_heads} does not divide hidden_size {vision.hidden_size}",
            ),
            (
                vision.image_size >= vision.patch_size,
                "vision_config.patch_size",
                f"{vision.patch_size} is more than image_size {vision.image_size}",
            ),
            (
                vision.hidden_act in ACTIVATIONS,
                "vision_config.hidden_act",
                f"{vision.hidden_act!r} is not supported; supported: {', '.join(ACTIVATIONS)}",
            ),
            (
                0 <= vision.layers_run <= vision.num_hidden_layers,
                "vision_feature_layer",
                f"{vision.feature_layer} is none of the {vision.num_hidden_layers + 1} outputs of the vision tower",
            ),
            (
                vision.learned_queries >= max(queries for _, queries in vision.queries),
                "max_value_projector_patch_to_query_dict",
                f"{vision.learned_queries} is less than projector_patch_to_query_dict asks for",
            ),
            (
                self.image_token_id < text.vocab_size,
                "image_token_index",
                f"{self.image_token_id} is outside the vocabulary of {text.vocab_size}",
            ),
        ]
        for good, key, what in checks:
            if not good:
                raise InputError(f"config.json: {key}: {what}")
        text.validate("text_config")

    def positions(
        self, input_ids: np.ndarray, lengths: np.ndarray, grid_thw: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Plain positions, see `rope.text_positions`.

        Raises:
          InputError: image tokens and images do not fit together.
        """
        needs = [] if grid_thw is None else [self.vision.image_tokens(grid) for grid in grid_thw]
        inside = np.arange(input_ids.shape[1]) < lengths[:, None]
        aria_layout.check_tokens(((input_ids == self.image_token_id) & inside).sum(axis=1), needs)
        return rope.text_positions(lengths, input_ids.shape[1])

    def vision_inputs(self, pixel_values: np.ndarray, grid_thw: np.ndarray) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """See `aria_layout.vision_inputs`."""
        return aria_layout.vision_inputs(self.vision, pixel_values, grid_thw)

    def to_hf(self) -> dict[str, Any]:
        """config.json as transformers 5.x reads it."""
        text, vision = self.text, self.vision
        values = decoder_to_hf(text)
        values |= {
            "model_type": "aria_text",
            "moe_num_experts": values.pop("num_experts"),
            "moe_topk": values.pop("num_experts_per_tok"),
            "moe_num_shared_experts": text.shared_expert_intermediate_size // text.moe_intermediate_size,
            "intermediate_size": text.moe_intermediate_size,
            "attention_bias": text.qkv_bias,
            "mlp_bias": False,
            "tie_word_embeddings": self.tie_word_embeddings,
        }
        tower = {key: getattr(vision, key) for key in (*VISION_DEFAULTS, "hidden_act", "layer_norm_eps")}
        return {
            "architectures": ["AriaForConditionalGeneration"],
            "model_type": self.model_type,
            "text_config": values,
            "vision_config": tower | {"model_type": "idefics3_vision"},
            "vision_feature_layer": vision.feature_layer,
            "projector_patch_to_query_dict": {str(patches): queries for patches, queries in vision.queries},
            "max_value_projector_patch_to_query_dict": vision.learned_queries,
            "image_token_index": self.image_token_id,
            "tie_word_embeddings": self.tie_word_embeddings,
        }


def _with_defaults(config: Mapping[str, Any], name: str, defaults: Mapping[str, Any]) -> Section:
    given = {key: value for key, value in Section(config, name).values.items() if value is not None}
    return Section({name: {**defaults, **given}}, name)


def _text_config(section: Section) -> AriaText:
    section.only("model_type", "aria_text")
    section.only("mlp_bias", False)
    bias, width = section.flag("attention_bias", False), section.whole("intermediate_size")
    decoder = read_decoder(
        section,
        num_experts=section.whole("moe_num_experts", 8),
        num_experts_per_tok=section.whole("moe_topk", 2),
        moe_intermediate_size=width,
        shared_expert_intermediate_size=width * section.whole("moe_num_shared_experts", 2),
        qkv_bias=bias,
        o_bias=bias,
        max_position_embeddings=2048,
    )
    return AriaText(**{field.name: getattr(decoder, field.name) for field in dataclasses.fields(decoder)})


def _vision_config(top: Section, section: Section, out_hidden_size: int) -> AriaVision:
    section.only("model_type", "idefics3_vision")
    queries = _queries(top)
    layer = top.get("vision_feature_layer", -1)
    if isinstance(layer, bool) or not isinstance(layer, int):
        raise InputError(f"config.json: vision_feature_layer is {brief(layer)}, expected an integer")
    return AriaVision(
        **{key: section.whole(key) for key in VISION_DEFAULTS},
        out_hidden_size=out_hidden_size,
        hidden_act=section.text("hidden_act", "gelu_pytorch_tanh"),
        layer_norm_eps=section.number("layer_norm_eps", 1e-6),
        queries=tuple(sorted(queries.items())),
        learned_queries=top.whole("max_value_projector_patch_to_query_dict", max(queries.values())),
        feature_layer=layer,
    )


def _queries(top: Section) -> dict[int, int]:
    """Tokens by patches; JSON has text for keys."""
    key = "projector_patch_to_query_dict"
    values = top.get(key, QUERIES)
    try:
        queries = {int(patches): operator.index(tokens) for patches, tokens in values.items()}
    except (AttributeError, TypeError, ValueError, OverflowError):
        queries = {}
    numbers = [*queries, *queries.values()]
    if not numbers or min(numbers) < 1 or max(numbers) > WIDTH:
        raise InputError(f'config.json: {key} is {brief(values)}, expected patches and queries such as {{"1225": 128}}')
    return queries
