"""Reads config.json level by level: typed values, and an error that names the key when one is wrong."""

from collections.abc import Mapping
from typing import Any

from expertflow_jax.errors import InputError, brief
from expertflow_jax.models.decoder_config import DecoderConfig
from expertflow_jax.models.rope_scaling import KEYS, RopeScaling

_REQUIRED = {"low_freq_factor", "high_freq_factor"}
_WIDTH = "moe_intermediate_size"


LAYERS = 256  # and experts of a layer, at most: nothing is built as large as a file happens to say (0.03 s a layer)
EXPERTS = 4096
WIDTH = 1 << 20
VOCABULARY = 1 << 24
_LARGEST = (1 << 31) - 1
# By a key's last part; what is none of these may be as large as _LARGEST.
_MOST = {
    **dict.fromkeys(("num_hidden_layers", "depth", "num_layers", "num_decoder_layers"), LAYERS),
    **dict.fromkeys(("num_experts", "num_local_experts", "moe_num_experts", "moe_num_shared_experts"), EXPERTS),
    **dict.fromkeys(("patch_size", "temporal_patch_size", "spatial_merge_size", "num_channels", "in_channels"), 1024),
    **dict.fromkeys(("num_attention_heads", "num_key_value_heads", "num_heads", "head_dim", "d_kv"), 1 << 16),
    **dict.fromkeys(("hidden_size", "intermediate_size", "moe_intermediate_size", "out_hidden_size"), WIDTH),
    **dict.fromkeys(("d_model", "d_ff", "shared_expert_intermediate_size", "num_position_embeddings"), WIDTH),
    **dict.fromkeys(("relative_attention_num_buckets", "max_value_projector_patch_to_query_dict"), 1 << 16),
    "image_size": 1 << 16,
    "vocab_size": VOCABULARY,
}
_ENTRIES = 4096  # of a list
_FLOAT32 = (1.2e-38, 3.4e38)  # numbers outside become 0 or infinity


class Section:
    """One level of config.json."""

    def __init__(self, config: Mapping[str, Any], name: str = ""):
        self.name = name
        values: Any = config.get(name) if name else config
        if not isinstance(values, Mapping):
            raise InputError(f"config.json: {name} is missing or not an object")
        self.values: Mapping[str, Any] = values

    def key(self, key: str) -> str:
        return f"{self.name}.{key}" if self.name else key

    def get(self, key: str, default: Any = None) -> Any:
        """The value, or `default` where it is missing or null."""
        value = self.values.get(key)
        return default if value is None else value

    def whole(self, key: str, default: int | None = None, least: int = 1) -> int:
        """An integer of at least `least`, and not larger than any model has; token ids and the like may be 0."""
        value = self.get(key, default)
        if value is None:
            raise InputError(f"config.json: {self.key(key)} is missing")
        if isinstance(value, list | tuple) and 0 < len(value) <= 3 and all(entry == value[0] for entry in value):
            value = value[0]
        if not _is_whole(value) or value < (0 if key.endswith("_id") else least):
            raise InputError(
                f"config.json: {self.key(key)} is {_shown(value)}, expected an integer of at least {least}"
            )
        most = _MOST.get(key, _LARGEST)
        if value > most:
            raise InputError(
                f"config.json: {self.key(key)} is {_shown(value)}, more than the {most} that are supported"
            )
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """A positive, finite number."""
        value = self.get(key, default)
        if value is None:
            raise InputError(f"config.json: {self.key(key)} is missing")
        least, most = _FLOAT32
        if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
            raise InputError(f"config.json: {self.key(key)} is {_shown(value)}, expected a positive, finite number")
        return float(value)

    def wholes(self, key: str, default: tuple[int, ...]) -> tuple[int, ...]:
        """A list of integers."""
        value = self.get(key, default)
        if (
            not isinstance(value, list | tuple)
            or len(value) > _ENTRIES
            or not all(_is_whole(v) and 0 <= v <= _LARGEST for v in value)
        ):
            raise InputError(f"config.json: {self.key(key)} is {_shown(value)}, expected a list of integers")
        return tuple(value)

    def flag(self, key: str, default: bool) -> bool:
        """True or false."""
        value = self.get(key, default)
        if not isinstance(value, bool):
            raise InputError(f"config.json: {self.key(key)} is {_shown(value)}, expected true or false")
        return value

    def text(self, key: str, default: str) -> str:
        """A string."""
        value = self.get(key, default)
        if not isinstance(value, str):
            raise InputError(f"config.json: {self.key(key)} is {_shown(value)}, expected a string")
        return value

    def only(self, key: str, allowed: Any) -> None:
        """Refuses any other value."""
        value = self.values.get(key, allowed)
        if value != allowed:
            raise InputError(f"config.json: {self.key(key)} is {_shown(value)}; only {allowed!r} is supported")


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _shown(value: Any) -> str:
    return repr(value) if isinstance(value, str) and len(value) <= 60 else brief(value)


def read_decoder(section: Section, **family: Any) -> DecoderConfig:
    """What all families spell alike.

    Args:
      section: of config.json.
      family: fields of `DecoderConfig` that the family reads in its own way (`num_experts`, `moe_intermediate_size` if
        under another name, `qk_norm`, ...); `rope_theta`, `rms_norm_eps` and `max_position_embeddings` are its
        defaults.

    Raises:
      InputError: naming the key that is missing, of the wrong type or not supported.
    """
    heads, width = section.whole("num_attention_heads"), section.whole("hidden_size")
    eps, context = family.pop("rms_norm_eps", 1e-6), family.pop("max_position_embeddings", 128_000)
    rope = rope_section(section)
    context = section.whole("max_position_embeddings", context)
    values: dict[str, Any] = {
        "vocab_size": section.whole("vocab_size"),
        "hidden_size": width,
        "num_hidden_layers": section.whole("num_hidden_layers"),
        "num_attention_heads": heads,
        "num_key_value_heads": section.whole("num_key_value_heads", heads),
        "head_dim": section.whole("head_dim", max(1, width // heads)),
        "hidden_act": section.text("hidden_act", "silu"),
        "rms_norm_eps": section.number("rms_norm_eps", eps),
        "rope_theta": rope.number("rope_theta", section.number("rope_theta", family.pop("rope_theta", 10_000.0))),
        "rope_scaling": _rope_scaling(rope, section.whole("original_max_position_embeddings", 0, least=0), context),
        "max_position_embeddings": context,
    }
    experts = "num_local_experts" if "num_local_experts" in section.values else "num_experts"
    for field, key in (("num_experts", experts), *((name, name) for name in ("num_experts_per_tok", _WIDTH))):
        if field not in family:
            values[field] = section.whole(key)
    return DecoderConfig(**(values | family))


def sparse_layers(section: Section) -> dict[str, Any]:
    """The fields that say which layers have experts, and how wide the others are."""
    return {
        "intermediate_size": section.whole("intermediate_size", 0, least=0),
        "decoder_sparse_step": section.whole("decoder_sparse_step", 1),
        "mlp_only_layers": section.wholes("mlp_only_layers", ()),
    }


def decoder_to_hf(config: DecoderConfig) -> dict[str, Any]:
    """The keys that `read_decoder` reads, but `moe_intermediate_size`, as transformers 5 spells them."""
    same = (
        "vocab_size hidden_size num_hidden_layers num_attention_heads num_key_value_heads head_dim num_experts "
        "num_experts_per_tok hidden_act rms_norm_eps max_position_embeddings"
    )
    rope = config.rope_scaling.to_hf() | {"rope_theta": config.rope_theta}
    return {key: getattr(config, key) for key in same.split()} | {"rope_parameters": rope}


def rope_section(section: Section) -> Section:
    """`rope_scaling` (4.x) or `rope_parameters` (5.x); an empty section when neither is there."""
    name = next((n for n in ("rope_scaling", "rope_parameters") if section.values.get(n)), None)
    if name is None:
        return Section({}, "")
    rope = Section(section.values, name)
    rope.name = section.key(name)
    return rope


def _rope_scaling(rope: Section, original: int, context: int) -> RopeScaling:
    kind = rope.values.get("rope_type", rope.values.get("type", "default"))
    kind = "default" if kind == "mrope" else kind
    if not isinstance(kind, str) or kind not in KEYS:
        raise InputError(f"config.json: {rope.key('rope_type')} is {_shown(kind)}; supported: {', '.join(KEYS)}")
    # Default rotation turns whole heads whatever this key says, in transformers too.
    if kind not in ("default", "proportional") and rope.get("partial_rotary_factor", 1.0) != 1.0:
        raise InputError(f"config.json: {rope.key('partial_rotary_factor')}: only whole heads are rotated")
    original = original or rope.whole("original_max_position_embeddings", context)
    defaults = {"proportional": 1.0}
    if kind == "yarn" and "factor" in rope.values:  # null there: the ratio of the contexts
        defaults["yarn"] = context / original
    values: dict[str, Any] = {}
    for key in KEYS[kind]:
        if key == "original_max_position_embeddings":
            values[key] = original
        elif key == "truncate":
            values[key] = rope.flag(key, True)
        elif key == "factor":
            values[key] = rope.number(key, defaults.get(kind))
        elif key in _REQUIRED or rope.get(key) is not None:
            values[key] = rope.number(key)
    scaling = RopeScaling(kind, **values)
    if kind == "llama3" and scaling.high_freq_factor <= scaling.low_freq_factor:
        raise InputError(f"config.json: {rope.key('high_freq_factor')} must be above low_freq_factor")
    return scaling
