"""Rotary frequencies stretched to longer contexts, as transformers' modeling_rope_utils computes them.

LongRoPE is missing: transformers chooses its frequencies by the length of the batch at hand, and keys that are cached
keep those of another length. Axes: B sequences, Dh head width.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

# What each kind reads beside theta.
KEYS: dict[str, tuple[str, ...]] = {
    "default": (),
    "dynamic": ("factor",),
    "linear": ("factor",),
    "proportional": ("factor", "partial_rotary_factor"),
    "llama3": ("factor", "original_max_position_embeddings", "low_freq_factor", "high_freq_factor"),
    "yarn": (
        "factor",
        "original_max_position_embeddings",
        "attention_factor",
        "beta_fast",
        "beta_slow",
        "mscale",
        "mscale_all_dim",
        "truncate",
    ),
}


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """`rope_parameters` but theta and sections; names are Hugging Face's, KEYS says which kind reads which."""

    kind: str = "default"
    factor: float = 1.0
    original_max_position_embeddings: int = 0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    attention_factor: float | None = None
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool = True
    partial_rotary_factor: float = 1.0

    def reach(self, context: int) -> int:
        """Positions that the scaling is made for; 0 where there is none.

        Args:
          context: `max_position_embeddings`.
        """
        if self.kind == "default":
            return 0
        length = self.factor * (self.original_max_position_embeddings or context)
        return int(min(length, LONGEST))

    def to_hf(self) -> dict[str, Any]:
        """As in config.json."""
        values = {key: getattr(self, key) for key in KEYS[self.kind]}
        return {"rope_type": self.kind} | {key: value for key, value in values.items() if value is not None}


UNSCALED = RopeScaling()
LONGEST = 1 << 30


def inverse_frequencies(head_dim: int, theta: float) -> np.ndarray:
    """float32 [head_dim / 2]."""
    return (1.0 / theta ** (np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim))).astype(np.float32)


def scaled_frequencies(head_dim: int, theta: float, scaling: RopeScaling) -> tuple[np.ndarray, float]:
    """Frequencies float32 [head_dim / 2], and what cosines and sines are multiplied by."""
    plain = inverse_frequencies(head_dim, theta)
    if scaling.kind == "linear":
        return (plain / np.float32(scaling.factor)).astype(np.float32), 1.0
    if scaling.kind == "proportional":
        turning = np.arange(head_dim // 2) < int(scaling.partial_rotary_factor * head_dim // 2)
        return np.where(turning, plain / np.float32(scaling.factor), 0).astype(np.float32), 1.0
    if scaling.kind == "llama3":
        return _llama3(plain, scaling), 1.0
    if scaling.kind == "yarn":
        return _yarn(plain, head_dim, theta, scaling), _yarn_attention(scaling)
    return plain, 1.0


def dynamic_frequencies(
    lengths: Int[jax.Array, " B"], head_dim: int, theta: float, factor: float, context: int
) -> Float[jax.Array, "B Dh/2"]:
    """NTK-aware frequencies of sequences as long as `lengths`, those of `context` for shorter ones.

    transformers takes the longest sequence of a batch; here each sequence has its own, so that its answer is that of
    a batch of one whatever its neighbours are.
    """
    longest = jnp.maximum(lengths, context).astype(jnp.float32)
    stretch = factor * longest / context - (factor - 1)
    base = theta * stretch ** (head_dim / (head_dim - 2))
    return 1.0 / base[:, None] ** (jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim)


def _llama3(plain: np.ndarray, scaling: RopeScaling) -> np.ndarray:
    """Long wavelengths are stretched, short ones kept, those between blended."""
    old, low, high = scaling.original_max_position_embeddings, scaling.low_freq_factor, scaling.high_freq_factor
    length = 2 * math.pi / plain
    blend = np.clip((old / length - low) / (high - low), 0, 1)
    return ((1 - blend) * plain / scaling.factor + blend * plain).astype(np.float32)


def _yarn(plain: np.ndarray, head_dim: int, theta: float, scaling: RopeScaling) -> np.ndarray:
    """YaRN (2309.00071): frequencies that turn often within the old context are kept, the rest is stretched."""

    def place(turns: float) -> float:
        """Index of the frequency that turns so often within the old context."""
        reach = scaling.original_max_position_embeddings / (turns * 2 * math.pi)
        return head_dim * math.log(reach) / (2 * math.log(theta) or math.inf)

    low, high = place(scaling.beta_fast), place(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    ramp = np.clip((np.arange(head_dim // 2) - low) / ((high - low) or 0.001), 0, 1).astype(np.float32)
    return (plain / np.float32(scaling.factor) * ramp + plain * (1 - ramp)).astype(np.float32)


def _yarn_attention(scaling: RopeScaling) -> float:
    """By which YaRN scales queries and keys."""

    def spread(scale: float) -> float:
        return 1.0 if scaling.factor <= 1 else 0.1 * scale * math.log(scaling.factor) + 1.0

    if scaling.attention_factor is not None:
        return scaling.attention_factor
    if scaling.mscale and scaling.mscale_all_dim:
        return spread(scaling.mscale) / spread(scaling.mscale_all_dim)
    return spread(1.0)
