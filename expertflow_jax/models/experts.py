"""The expert maths that all families share: feed-forward experts, grouped without dropping a row, in static shapes.

`grouped_experts` is the all-in-one form (training, fused reference): rows are sorted by expert and padded
to tiles, as in MegaBlocks (2211.15841, section 4), because `jax.lax.ragged_dot` on CPU computes every expert
on every row. `run_expert_group` is the form for experts that live in separate slots. A *row* is one (token,
choice) pair. Axes: N tokens, K top-k, E experts, D model width, F expert width, R rows, C rows of one expert.
"""

import dataclasses
import mmap
from collections.abc import Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from expertflow_jax.models.layers import ACTIVATIONS

Parts = tuple[jax.Array, ...]  # the arrays of one expert, see `BufferLayout`

_ALIGNED = 64  # bytes

TILE_ROWS = 32  # measured on CPU at N=3584, K=2, E=64: 16 and 128 are a third slower, forward and backward


@dataclasses.dataclass(frozen=True)
class ExpertKind:
    """The maths of one expert.

    Attributes:
      activation: a key of `layers.ACTIVATIONS`.
      gated: act(x @ gate) * (x @ up) @ down; else act(x @ up) @ down, and `gate_up` below is [D, F], up alone.
    """

    activation: str = "silu"
    gated: bool = True


class BufferLayout(Protocol):
    """Of which arrays one expert consists: its matrices (`ExpertLayout`), or bytes (`quantized.QuantizedLayout`)."""

    @property
    def dtype(self) -> Any:
        """Of the arrays."""

    @property
    def part_shapes(self) -> tuple[tuple[int, ...], ...]:
        """Of the arrays; an expert moves whole, all of them in one call."""

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays."""

    @property
    def scratch_bytes(self) -> int:
        """Device bytes beside the arrays that running the expert takes for its matrices."""

    @property
    def kind(self) -> ExpertKind:
        """The maths of the expert."""

    def pack(self, gate_up: np.ndarray, down: np.ndarray) -> tuple[np.ndarray, ...]:
        """gate_up [D, 2F] and down [F, D] as arrays of their own (host side)."""

    def unpack(self, parts: Any) -> tuple[jax.Array, jax.Array]:
        """The inverse, in the dtype of the computation. Works on NumPy and traced arrays."""


@dataclasses.dataclass(frozen=True)
class ExpertLayout:
    """One expert as its two matrices: gate_up [D, 2F] (gate columns, then up) and down [F, D].

    Two arrays rather than one flat buffer, since XLA on CPU multiplies by copies of a buffer's parts: at 2.75 MB and
    1 to 8 rows that took 1.7 to 2.1 times as long.
    """

    d_model: int
    d_ff: int
    dtype: jnp.dtype
    kind: ExpertKind = ExpertKind()

    @property
    def width(self) -> int:
        """Columns of gate_up: 2F, or F without a gate."""
        return (1 + self.kind.gated) * self.d_ff

    @property
    def size(self) -> int:
        """Numbers per expert, P."""
        return self.d_model * (self.width + self.d_ff)

    @property
    def nbytes(self) -> int:
        """Bytes per expert."""
        return self.size * np.dtype(self.dtype).itemsize

    @property
    def part_shapes(self) -> tuple[tuple[int, ...], ...]:
        """Of the two matrices."""
        return (self.d_model, self.width), (self.d_ff, self.d_model)

    @property
    def scratch_bytes(self) -> int:
        """XLA on CPU multiplies bfloat16 in float32, one expert at a time."""
        return 0 if np.dtype(self.dtype).itemsize == 4 else 2 * self.nbytes

    def pack(self, gate_up: np.ndarray, down: np.ndarray) -> tuple[np.ndarray, ...]:
        """gate_up [D, 2F] and down [F, D] as arrays of their own, of the layout's dtype (host side)."""
        parts = aligned_arrays((gate_up.shape, down.shape), self.dtype)
        parts[0][...], parts[1][...] = gate_up, down  # transposed views are copied once
        return parts

    def unpack(self, parts: Any) -> tuple[jax.Array, jax.Array]:
        """The inverse of `pack`: gate_up [D, 2F], down [F, D]."""
        gate_up, down = parts
        return gate_up, down


def aligned_arrays(shapes: Sequence[tuple[int, ...]], dtype: Any) -> tuple[np.ndarray, ...]:
    """Arrays of zeros side by side in one block of memory, aligned so that the CPU backend can use them as they are:
    copies of its own, made expert by expert, would leave the heap in pieces. The block has pages of its own for the
    same reason: among what is read and freed beside it, the heap grew by a tenth of the experts in some runs."""
    dtype, places, end = np.dtype(dtype), [], 0
    for shape in shapes:
        places.append((end, end + int(np.prod(shape)) * dtype.itemsize))
        end = -(-places[-1][1] // _ALIGNED) * _ALIGNED
    block = np.frombuffer(mmap.mmap(-1, end, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS), np.uint8)
    return tuple(block[a:b].view(dtype).reshape(shape) for (a, b), shape in zip(places, shapes, strict=True))


def run_expert(rows: jax.Array, gate_up: jax.Array, down: jax.Array, kind: ExpertKind) -> jax.Array:
    """One expert on its rows.

    Args:
      rows: [..., R, D].
      gate_up: [..., D, 2F], gate columns first; [..., D, F] without a gate.
      down: [..., F, D].
      kind: of the expert.

    Returns:
      [..., R, D].
    """
    act = ACTIVATIONS[kind.activation]
    if not kind.gated:
        return act(rows @ gate_up) @ down
    gate, up = jnp.split(rows @ gate_up, 2, axis=-1)
    return (act(gate) * up) @ down


def grouped_experts(
    gate_up: jax.Array, down: jax.Array, y: jax.Array, expert_ids: jax.Array, kind: ExpertKind = ExpertKind()
) -> jax.Array:
    """Every chosen expert on every row: exact, no row dropped, static shapes, differentiable.

    Args:
      gate_up: [E, D, 2F].
      down: [E, F, D].
      y: [N, D] MoE inputs.
      expert_ids: int32 [N, K], -1 for no expert (its output is zero).
      kind: of the experts.

    Returns:
      [N, K, D], unweighted.
    """
    num_experts = gate_up.shape[0]
    tokens, top_k = expert_ids.shape
    rows = tokens * top_k
    source, place, tile_expert = _tile_plan(expert_ids.reshape(-1), num_experts)
    token = jnp.where(source < rows, source // top_k, tokens)
    tiles = _permute(y, token, place.reshape(tokens, top_k)).reshape(-1, TILE_ROWS, y.shape[-1])
    out = run_expert(tiles, gate_up[tile_expert], down[tile_expert], kind)
    out = _permute(out.reshape(-1, y.shape[-1]), place, source[:, None])
    return out.reshape(tokens, top_k, -1)


def _tile_plan(ids: jax.Array, num_experts: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Gives each row a place in tiles that hold rows of one expert each.

    Args:
      ids: int32 [R], -1 for none.

    Returns:
      source int32 [tiles * TILE_ROWS], the row at each place (R where padding);
      place int32 [R], the place of each row (tiles * TILE_ROWS for rows of no expert);
      tile_expert int32 [tiles].
    """
    rows = ids.shape[0]
    num_tiles = -(-rows // TILE_ROWS) + min(num_experts, rows)
    key = jnp.where(ids < 0, num_experts, ids)
    counts = jnp.zeros(num_experts + 1, jnp.int32).at[key].add(1)[:num_experts]
    zero = jnp.zeros(1, jnp.int32)
    first_row = jnp.concatenate([zero, jnp.cumsum(counts)])
    first_tile = jnp.concatenate([zero, jnp.cumsum(-(-counts // TILE_ROWS))])
    order = jnp.argsort(key, stable=True).astype(jnp.int32)
    expert = key[order]
    rank = jnp.arange(rows, dtype=jnp.int32) - first_row[expert]
    spot = jnp.where(expert < num_experts, first_tile[expert] * TILE_ROWS + rank, num_tiles * TILE_ROWS)
    place = jnp.zeros(rows, jnp.int32).at[order].set(spot, unique_indices=True)
    source = jnp.full(num_tiles * TILE_ROWS, rows, jnp.int32).at[spot].set(order, mode="drop")
    tile_expert = jnp.searchsorted(first_tile[1:], jnp.arange(num_tiles), side="right")
    return source, place, jnp.minimum(tile_expert, num_experts - 1)


@jax.custom_vjp
def _permute(x: jax.Array, take: jax.Array, back: jax.Array) -> jax.Array:
    """x[take] with zeros where `take` is out of range; `back` [len(x), J] lists where each row went.

    Written out because the transpose of a gather is a scatter, which is slow on CPU, while here the places
    are known: the gradient is a gather too.
    """
    return x.at[take].get(mode="fill", fill_value=0)


def _permute_forward(x: jax.Array, take: jax.Array, back: jax.Array) -> tuple[jax.Array, jax.Array]:
    return _permute(x, take, back), back


def _permute_backward(back: jax.Array, grad: jax.Array) -> tuple[jax.Array, None, None]:
    return grad.at[back].get(mode="fill", fill_value=0).sum(axis=1), None, None


_permute.defvjp(_permute_forward, _permute_backward)


def run_expert_group(
    layout: BufferLayout, buffers: Sequence[Parts], rows: jax.Array, y: jax.Array, out: jax.Array, apart: bool = False
) -> jax.Array:
    """Runs n experts that lie in n separate slots; unrolled, because stacking them would copy them.

    Args:
      layout: of the slots.
      buffers: n times the arrays of one expert.
      rows: int32 [n, C], row numbers token * K + choice; N * K marks padding.
      y: [N, D] MoE inputs.
      out: [N * K + 1, D], to be donated; the last row takes the padding.
      apart: see `DeviceForm`.

    Returns:
      `out` with the rows' outputs written.
    """
    top_k = (out.shape[0] - 1) // y.shape[0]
    outputs: list[jax.Array] = []
    for i, parts in enumerate(buffers):
        if outputs and (apart or layout.scratch_bytes):
            # One expert after another: without the barrier all n are unpacked first (measured on CPU with 9 MB experts:
            # 8 times the memory, and 2 to 4 times the time).
            parts, outputs[-1] = jax.lax.optimization_barrier((parts, outputs[-1]))
        taken = y.at[rows[i] // top_k].get(mode="clip")
        outputs.append(run_expert(taken, *layout.unpack(parts), layout.kind).astype(out.dtype))
    if apart:
        outputs = jax.lax.optimization_barrier(outputs)
    return out.at[rows.reshape(-1)].set(jnp.concatenate(outputs))  # in one go: 10 to 20 % faster than one by one


def combine(h: jax.Array, out: jax.Array, expert_weights: jax.Array) -> jax.Array:
    """Residual plus the weighted sum over choices, added in the order of K everywhere, in float32.

    Args:
      h: [N, D] residual stream.
      out: [N * K + 1, D] or [N * K, D] expert outputs.
      expert_weights: float32 [N, K].

    Returns:
      [N, D] in h's dtype.
    """
    tokens, top_k = expert_weights.shape
    outputs = out[: tokens * top_k].reshape(tokens, top_k, -1).astype(jnp.float32)
    total = outputs[:, 0] * expert_weights[:, 0, None]
    for k in range(1, top_k):
        total = total + outputs[:, k] * expert_weights[:, k, None]
    return (h.astype(jnp.float32) + total).astype(h.dtype)
