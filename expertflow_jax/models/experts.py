"""The expert maths that all families share: feed-forward experts, grouped without dropping a row, in static shapes.

`grouped_experts` is the all-in-one form (training, fused reference): rows are sorted by expert and padded
to tiles, as in MegaBlocks (2211.15841, section 4), because `jax.lax.ragged_dot` on CPU computes every expert
on every row. `run_expert_group` is the form for experts that live in separate slots. A *row* is one (token,
choice) pair. Axes: N tokens, K top-k, E experts, D model width, F expert width, R rows, C rows of one expert,
P numbers per expert.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from expertflow_jax.models.layers import ACTIVATIONS

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
    """How one expert lies in its flat buffer: as it is (`ExpertLayout`), or quantised (`quantized.QuantizedLayout`)."""

    @property
    def dtype(self) -> Any:
        """Of the buffer."""

    @property
    def size(self) -> int:
        """Entries of the buffer, P."""

    @property
    def nbytes(self) -> int:
        """Bytes of the buffer."""

    @property
    def scratch_bytes(self) -> int:
        """Device bytes beside the buffer that running the expert takes for its matrices."""

    @property
    def kind(self) -> ExpertKind:
        """The maths of the expert."""

    def pack(self, gate_up: np.ndarray, down: np.ndarray) -> np.ndarray:
        """gate_up [D, 2F] and down [F, D] as a flat buffer [P] of its own (host side)."""

    def unpack(self, flat: Any) -> tuple[jax.Array, jax.Array]:
        """The inverse, in the dtype of the computation. Works on NumPy and traced arrays."""


@dataclasses.dataclass(frozen=True)
class ExpertLayout:
    """One expert as one contiguous buffer: gate_up [D, 2F] (gate columns, then up), then down [F, D]."""

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
    def scratch_bytes(self) -> int:
        """XLA on CPU multiplies by copies of the two parts of the buffer, of one expert at a time."""
        return self.nbytes

    def pack(self, gate_up: np.ndarray, down: np.ndarray) -> np.ndarray:
        """gate_up [D, 2F] and down [F, D] as one flat [P] array of the layout's dtype (host side)."""
        flat = np.empty(self.size, self.dtype)
        flat[: gate_up.size].reshape(gate_up.shape)[...] = gate_up  # transposed views are copied once
        flat[gate_up.size :].reshape(down.shape)[...] = down
        return flat

    def unpack(self, flat: Any) -> tuple[jax.Array, jax.Array]:
        """The inverse of `pack`: gate_up [D, 2F], down [F, D]. Works on NumPy and traced arrays."""
        split = self.d_model * self.width
        return (
            flat[:split].reshape(self.d_model, self.width),
            flat[split:].reshape(self.d_ff, self.d_model),
        )


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
    layout: BufferLayout, buffers: Sequence[jax.Array], rows: jax.Array, y: jax.Array, out: jax.Array
) -> jax.Array:
    """Runs n experts that lie in n separate buffers; unrolled, because stacking the buffers would copy them.

    Args:
      layout: of the buffers.
      buffers: n arrays [P].
      rows: int32 [n, C], row numbers token * K + choice; N * K marks padding.
      y: [N, D] MoE inputs.
      out: [N * K + 1, D], to be donated; the last row takes the padding.

    Returns:
      `out` with the rows' outputs written.
    """
    top_k = (out.shape[0] - 1) // y.shape[0]
    for i, flat in enumerate(buffers):
        # One expert after another: without the barrier all n are unpacked first (measured on CPU with 9 MB experts:
        # 8 times the memory, and 2 to 4 times the time).
        flat, out = jax.lax.optimization_barrier((flat, out))
        taken = y.at[rows[i] // top_k].get(mode="clip")
        out = out.at[rows[i]].set(run_expert(taken, *layout.unpack(flat), layout.kind).astype(out.dtype))
    return out


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
