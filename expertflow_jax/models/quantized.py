"""Experts as int8 or int4 numbers with a scale per group: smaller in host memory, on the link and in the slots.

Group-wise symmetric quantisation: `GROUP` consecutive numbers of the flat expert share one bfloat16 scale, the largest
magnitude among them over 127 (int8) or 7 (int4). An expert is one uint8 buffer, numbers first, then scales, that moves
in one transfer and is dequantised by the step that runs it. A number times a scale has at most 16 significant bits, so
dequantisation is exact in float32 and rounds once to bfloat16: the same bits on every backend, in every cache.

Own code, though qwix quantises in groups too: it keeps numbers and scales as two arrays, int4 one to a byte on the
host, so packing and unpacking, which is most of this file, would be needed all the same. Axes: D model width, F expert
width, P bytes of an expert, G groups.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

from expertflow_jax.errors import InputError
from expertflow_jax.models.expert_dtypes import BITS
from expertflow_jax.models.experts import BufferLayout, ExpertKind, ExpertLayout, aligned_arrays

GROUP = 64  # scales take 3 % on top of int8 and 6 % on top of int4; 32 lowers int4's error by a tenth for twice that
_CHUNK = 1 << 12  # groups quantised at a time, so that temporaries stay small


@dataclasses.dataclass(frozen=True)
class QuantizedLayout:
    """`ExpertLayout`'s counterpart for quantised experts.

    Attributes:
      full: the layout that `unpack` restores, in the dtype of the computation.
      bits: 8 or 4.
    """

    full: ExpertLayout
    bits: int

    @property
    def dtype(self) -> np.dtype:
        """Of the buffer."""
        return np.dtype(np.uint8)

    @property
    def kind(self) -> ExpertKind:
        """The maths of one expert."""
        return self.full.kind

    @property
    def groups(self) -> int:
        """G; the last one is filled up with zeros."""
        return -(-self.full.size // GROUP)

    @property
    def size(self) -> int:
        """Bytes per expert, P."""
        return self.groups * (GROUP * self.bits // 8 + 2)

    @property
    def part_shapes(self) -> tuple[tuple[int, ...], ...]:
        """One array."""
        return ((self.size,),)

    @property
    def nbytes(self) -> int:
        """The same as the size."""
        return self.size

    @property
    def scratch_bytes(self) -> int:
        """One expert at a time, dequantised, and copied once more on its way to the product."""
        return 2 * self.full.nbytes

    def pack(self, gate_up: np.ndarray, down: np.ndarray) -> tuple[np.ndarray, ...]:
        """gate_up [D, 2F] and down [F, D], quantised: one uint8 [P] (host side).

        Raises:
          InputError: NaN or infinity among the numbers.
        """
        numbers = np.zeros((self.groups, GROUP), self.full.dtype)
        split, flat = gate_up.size, numbers.reshape(-1)
        flat[:split].reshape(gate_up.shape)[...] = gate_up
        flat[split : self.full.size].reshape(down.shape)[...] = down
        (packed,) = aligned_arrays(self.part_shapes, np.uint8)
        values = packed[: self.groups * GROUP * self.bits // 8].reshape(self.groups, -1)
        scales = packed[values.size :].view(ml_dtypes.bfloat16)
        for start in range(0, self.groups, _CHUNK):
            part = slice(start, start + _CHUNK)
            values[part], scales[part] = _quantize(numbers[part].astype(np.float32), self.bits)
        return (packed,)

    def unpack(self, parts: Any) -> tuple[jax.Array, jax.Array]:
        """gate_up [D, 2F], down [F, D] in the dtype of the computation, from one uint8 [P]; NumPy or traced."""
        flat = jnp.asarray(parts[0])
        count = self.groups * GROUP * self.bits // 8
        values = jax.lax.bitcast_convert_type(flat[:count].reshape(self.groups, -1), jnp.int8)
        if self.bits == 4:  # the first half of a group lies in the low nibbles, the second in the high ones
            values = jnp.concatenate([values << 4 >> 4, values >> 4], axis=1)
        scales = jax.lax.bitcast_convert_type(flat[count:].reshape(-1, 2), jnp.bfloat16)
        numbers = values.astype(jnp.float32) * scales.astype(jnp.float32)[:, None]
        restored = numbers.astype(self.full.dtype).reshape(-1)
        (d, width), (f, _) = self.full.part_shapes
        return restored[: d * width].reshape(d, width), restored[d * width : self.full.size].reshape(f, d)


def _quantize(numbers: np.ndarray, bits: int) -> tuple[np.ndarray, np.ndarray]:
    """float32 [G, GROUP] -> values uint8 [G, GROUP * bits / 8], scales bfloat16 [G]."""
    most = 2 ** (bits - 1) - 1
    largest = np.abs(numbers).max(axis=1)
    if not np.isfinite(largest).all():
        raise InputError("the expert holds NaN or infinity, which cannot be quantised; check the checkpoint")
    scales = (largest / most).astype(ml_dtypes.bfloat16)
    scales[scales < ml_dtypes.finfo(ml_dtypes.bfloat16).smallest_normal] = 0  # backends differ in what is smaller
    # The stored scale divides, not the exact one, so that rounding it costs no accuracy but a hair at the ends.
    divisor = scales.astype(np.float32)[:, None]
    values = np.divide(numbers, divisor, out=np.zeros_like(numbers), where=divisor > 0)
    whole = np.clip(np.rint(values), -most, most).astype(np.int8)
    if bits == 8:
        return whole.view(np.uint8), scales
    low, high = np.split(whole.view(np.uint8), 2, axis=1)
    return (low & 15) | (high << 4), scales


def layout_for(full: ExpertLayout, expert_dtype: str | None) -> BufferLayout:
    """The layout of experts kept as `expert_dtype`: "int8", "int4", or None (or "") for the model's own dtype.

    Raises:
      InputError: another one.
    """
    if not expert_dtype:
        return full
    if expert_dtype not in BITS:
        raise InputError(f"expert_dtype {expert_dtype!r} is not supported; choose int8 or int4, or leave it out")
    return QuantizedLayout(full, BITS[expert_dtype])
