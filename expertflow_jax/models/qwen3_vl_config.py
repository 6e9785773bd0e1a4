"""Configuration of Qwen3-VL-MoE, read from and written as Hugging Face's config.json (4.57 and 5.x spellings)."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from expertflow_jax.errors import InputError

MODEL_TYPE = "qwen3_vl_moe"


@dataclasses.dataclass(frozen=True)
class TextConfig:
    """The language model. Names are Hugging Face's."""

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
    decoder_sparse_step: int = 1  # a layer has experts when (index + 1) % decoder_sparse_step == 0
    mlp_only_layers: tuple[int, ...] = ()
    rms_norm_eps: float = 1e-6
    rope_theta: float = 500_000.0
    mrope_section: tuple[int, ...] = (24, 20, 20)  # frequencies of time, height and width
    attention_bias: bool = False
    max_position_embeddings: int = 128_000

    def is_moe(self, layer: int) -> bool:
        """Whether decoder layer `layer` has experts."""
        return layer not in self.mlp_only_layers and (layer + 1) % self.decoder_sparse_step == 0

    @property
    def moe_layers(self) -> tuple[int, ...]:
        """Indices of the decoder layers that have experts."""
        return tuple(i for i in range(self.num_hidden_layers) if self.is_moe(i))


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


@dataclasses.dataclass(frozen=True)
class Qwen3VLMoeConfig:
    """Architecture of one Qwen3-VL-MoE model; a small one and the 30B-A3B differ only in these numbers."""

    text: TextConfig
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
        if config.get("model_type") != MODEL_TYPE:
            raise InputError(f"config.json: model_type is {config.get('model_type')!r}, expected {MODEL_TYPE!r}")
        text = _text_config(_Section(config, "text_config"))
        vision = _vision_config(_Section(config, "vision_config"))
        top = _Section(config)
        result = cls(
            text,
            vision,
            image_token_id=top.whole("image_token_id", 151655),
            video_token_id=top.whole("video_token_id", 151656),
            vision_start_token_id=top.whole("vision_start_token_id", 151652),
            vision_end_token_id=top.whole("vision_end_token_id", 151653),
            tie_word_embeddings=bool(config.get("tie_word_embeddings", False)),
        )
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
                text.num_attention_heads % text.num_key_value_heads == 0,
                "text_config.num_key_value_heads",
                f"{text.num_key_value_heads} does not divide num_attention_heads {text.num_attention_heads}",
            ),
            (text.head_dim % 2 == 0, "text_config.head_dim", f"{text.head_dim} is odd"),
            (
                len(text.mrope_section) == 3,
                "text_config.rope_parameters.mrope_section",
                f"needs 3 numbers, has {len(text.mrope_section)}",
            ),
            (
                text.num_experts_per_tok <= text.num_experts,
                "text_config.num_experts_per_tok",
                f"{text.num_experts_per_tok} is more than num_experts {text.num_experts}",
            ),
            (bool(text.moe_layers), "text_config.mlp_only_layers", "leaves no layer with experts"),
            (
                len(text.moe_layers) == text.num_hidden_layers or text.intermediate_size > 0,
                "text_config.intermediate_size",
                "must be positive when some layers have no experts",
            ),
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

    def to_hf(self) -> dict[str, Any]:
        """config.json as transformers 5.x reads it (4.57 spellings of the rotary keys beside it)."""
        text = dataclasses.asdict(self.text)
        theta, section = text.pop("rope_theta"), list(text.pop("mrope_section"))
        rope = {"rope_type": "default", "mrope_section": section, "mrope_interleaved": True}
        text |= {
            "model_type": "qwen3_vl_moe_text",
            "hidden_act": "silu",
            "mlp_only_layers": list(self.text.mlp_only_layers),
            "norm_topk_prob": True,
            "rope_theta": theta,
            "rope_scaling": rope,
            "rope_parameters": rope | {"rope_theta": theta},
            "tie_word_embeddings": self.tie_word_embeddings,
        }
        vision = dataclasses.asdict(self.vision)
        vision |= {
            "model_type": "qwen3_vl_moe_vision",
            "hidden_act": "gelu_pytorch_tanh",
            "deepstack_visual_indexes": list(self.vision.deepstack_visual_indexes),
            "rope_parameters": {"rope_type": "axial", "rope_theta": vision.pop("rope_theta")},
        }
        return {
            "architectures": ["Qwen3VLMoeForConditionalGeneration"],
            "model_type": MODEL_TYPE,
            "text_config": text,
            "vision_config": vision,
            "image_token_id": self.image_token_id,
            "video_token_id": self.video_token_id,
            "vision_start_token_id": self.vision_start_token_id,
            "vision_end_token_id": self.vision_end_token_id,
            "tie_word_embeddings": self.tie_word_embeddings,
        }


class _Section:
    """One level of config.json; reads typed values and names the key when one is wrong."""

    def __init__(self, config: Mapping[str, Any], name: str = ""):
        self.name = name
        values: Any = config.get(name) if name else config
        if not isinstance(values, Mapping):
            raise InputError(f"config.json: {name} is missing or not an object")
        self.values: Mapping[str, Any] = values

    def key(self, key: str) -> str:
        return f"{self.name}.{key}" if self.name else key

    def whole(self, key: str, default: int | None = None, least: int = 1) -> int:
        """An integer of at least `least`; token ids and the like may be 0."""
        value = self.values.get(key)
        value = default if value is None else value
        if value is None:
            raise InputError(f"config.json: {self.key(key)} is missing")
        if isinstance(value, list | tuple) and len(set(value)) == 1:
            value = value[0]
        if isinstance(value, bool) or not isinstance(value, int) or value < (0 if key.endswith("_id") else least):
            raise InputError(f"config.json: {self.key(key)} is {value!r}, expected an integer of at least {least}")
        return value

    def number(self, key: str, default: float) -> float:
        value = self.values.get(key)
        value = default if value is None else value
        if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
            raise InputError(f"config.json: {self.key(key)} is {value!r}, expected a positive number")
        return float(value)

    def wholes(self, key: str, default: tuple[int, ...]) -> tuple[int, ...]:
        value = self.values.get(key)
        value = default if value is None else value
        if not isinstance(value, list | tuple) or not all(isinstance(v, int) and v >= 0 for v in value):
            raise InputError(f"config.json: {self.key(key)} is {value!r}, expected a list of integers")
        return tuple(value)

    def only(self, key: str, allowed: str) -> None:
        value = self.values.get(key, allowed)
        if value != allowed:
            raise InputError(f"config.json: {self.key(key)} is {value!r}; only {allowed!r} is supported")


def _text_config(section: _Section) -> TextConfig:
    section.only("hidden_act", "silu")
    rope = _rope_section(section)
    heads, width = section.whole("num_attention_heads"), section.whole("hidden_size")
    experts_key = "num_local_experts" if "num_local_experts" in section.values else "num_experts"
    return TextConfig(
        vocab_size=section.whole("vocab_size"),
        hidden_size=width,
        num_hidden_layers=section.whole("num_hidden_layers"),
        num_attention_heads=heads,
        num_key_value_heads=section.whole("num_key_value_heads", heads),
        head_dim=section.whole("head_dim", width // heads),
        num_experts=section.whole(experts_key),
        num_experts_per_tok=section.whole("num_experts_per_tok"),
        moe_intermediate_size=section.whole("moe_intermediate_size"),
        intermediate_size=section.whole("intermediate_size", 0, least=0),
        decoder_sparse_step=section.whole("decoder_sparse_step", 1),
        mlp_only_layers=section.wholes("mlp_only_layers", ()),
        rms_norm_eps=section.number("rms_norm_eps", 1e-6),
        rope_theta=rope.number("rope_theta", section.number("rope_theta", 500_000.0)),
        mrope_section=rope.wholes("mrope_section", (24, 20, 20)),
        attention_bias=bool(section.values.get("attention_bias", False)),
        max_position_embeddings=section.whole("max_position_embeddings", 128_000),
    )


def _rope_section(section: _Section) -> _Section:
    """`rope_parameters` (5.x) or `rope_scaling` (4.57); an empty section when neither is there."""
    name = next((n for n in ("rope_parameters", "rope_scaling") if section.values.get(n)), None)
    if name is None:
        return _Section({})
    rope = _Section(section.values, name)
    rope.name = section.key(name)
    kind = rope.values.get("rope_type", rope.values.get("type", "default"))
    if kind not in ("default", "mrope"):
        raise InputError(f"config.json: {rope.key('rope_type')} is {kind!r}; only 'default' is supported")
    return rope


def _vision_config(section: _Section) -> VisionConfig:
    section.only("hidden_act", "gelu_pytorch_tanh")
    rope = section.values.get("rope_parameters")
    theta = _Section(section.values, "rope_parameters").number("rope_theta", 10_000.0) if rope else 10_000.0
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
