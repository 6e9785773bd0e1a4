"""Quantised checkpoints are refused by name, before any weights are read.

Packers write what they did into config.json (`quantization_config`, as transformers reads it), and tensors that no
plain checkpoint has: GPTQ (2210.17323) and AWQ (2306.00978) qweight and qzeros, bitsandbytes absmax or SCB, and so on.
"""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from expertflow_jax.checkpoints.files import TensorFiles
from expertflow_jax.errors import InputError, brief

NAMES = {
    "gptq": "GPTQ",
    "awq": "AWQ",
    "bitsandbytes": "bitsandbytes",
    "fp8": "block FP8",
    "fbgemm_fp8": "FBGEMM FP8",
    "mxfp4": "MXFP4",
    "compressed-tensors": "compressed-tensors",
    "hqq": "HQQ",
    "eetq": "EETQ",
    "quanto": "Quanto",
    "torchao": "torchao",
    "aqlm": "AQLM",
    "vptq": "VPTQ",
    "higgs": "HIGGS",
    "spqr": "SpQR",
    "bitnet": "BitNet",
    "fp_quant": "FP-Quant",
    "auto-round": "AutoRound",
    "modelopt": "ModelOpt",
    "mlx": "MLX",
}
_KEYS = ("quantization_config", "compression_config", "quantization")
# Endings of tensors that only one kind of packer writes, all of which must be there; the first that fit count.
_ENDINGS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("GPTQ", (".qweight", ".g_idx")),
    ("GPTQ or AWQ", (".qweight", ".qzeros")),
    ("GPTQ or AWQ", (".qweight",)),
    ("bitsandbytes 4-bit", (".absmax",)),
    ("bitsandbytes 4-bit", (".quant_state.bitsandbytes__nf4",)),
    ("bitsandbytes 4-bit", (".quant_state.bitsandbytes__fp4",)),
    ("bitsandbytes 8-bit", (".SCB",)),
    ("block FP8", (".weight_scale_inv",)),
    ("block FP8", ("_proj_scale_inv",)),
    ("MXFP4", ("_blocks", "_scales")),
    ("compressed-tensors", (".weight_packed",)),
    ("HQQ", (".W_q",)),
    ("EETQ", (".weight_scales",)),
    ("AQLM", (".codebooks", ".codes")),
    ("VPTQ", (".centroids.weight",)),
    ("Quanto", (".weight._data",)),
    ("MLX", (".scales", ".biases")),
    ("FP8 or INT8 with scales", (".weight_scale",)),
    ("FP8 or INT8 with scales", ("_proj_scale",)),
)


def refuse_quantized_config(path: Path, config: Mapping[str, Any]) -> None:
    """Raises InputError if a parsed config.json says that the weights are quantised.

    Args:
      path: of config.json, for the message.
    """
    for section in (config, config.get("text_config")):
        for key in _KEYS:
            settings = section.get(key) if isinstance(section, Mapping) else None
            if not settings:
                continue
            if not isinstance(settings, Mapping):
                raise InputError(f"{path}: {key} is {brief(settings)}, expected an object")
            kind = _kind(settings, "mlx" if key == "quantization" else key)
            if kind is not None:
                name = NAMES.get(kind.lower(), brief(kind))
                raise _refusal(path, f"with {name}{_bits(settings)}, as {key} says")


def _kind(settings: Mapping[str, Any], key: str) -> str | None:
    """What transformers calls the method; None where the settings quantise nothing."""
    method = settings.get("quant_method")
    bits = [settings.get(name) for name in ("load_in_4bit", "load_in_8bit", "_load_in_4bit", "_load_in_8bit")]
    if method in (None, "bitsandbytes") and any(bit is not None for bit in bits):
        return "bitsandbytes" if any(bits) else None
    return key if method is None else str(method)


def _bits(settings: Mapping[str, Any]) -> str:
    bits = settings.get("bits", settings.get("w_bit"))
    if settings.get("load_in_4bit") is True:
        bits = 4
    elif settings.get("load_in_8bit") is True:
        bits = 8
    return f" of {bits} bits" if isinstance(bits, int) and 0 < bits <= 64 else ""


def refuse_quantized_tensors(path: Path, files: TensorFiles) -> None:
    """Raises InputError if names or dtypes of tensors are those of a quantised checkpoint.

    Args:
      path: the checkpoint's directory, for the message.
    """
    names = files.names
    for kind, endings in _ENDINGS:
        tensors = [_first(names, ending) for ending in endings]
        if None not in tensors:
            raise _refusal(path, f"with {kind}, as {brief(tensors[0])} shows")
    floats = [name for name in names if files.dtype(name).startswith("F8_")]
    if floats:
        raise _refusal(path, f"with FP8, as {brief(min(floats))} shows, which is stored as {files.dtype(min(floats))}")


def _first(names: Collection[str], ending: str) -> str | None:
    return min((name for name in names if name.endswith(ending)), default=None)


def _refusal(path: Path, how: str) -> InputError:
    return InputError(
        f"{path}: the weights are quantised {how}; supported are checkpoints in bfloat16, float16 and float32: take "
        'the original one, and expert_dtype="int4" or "int8" if its experts are to be quantised as they are loaded'
    )
