"""Experts that lie in a pool, on tiles of rows: the grouped kernel of a GPU, and the plain form beside it.

A *tile* is R rows of one expert with the slot where that expert lies. Every tile is computed by the same program,
whichever tiles are beside it and wherever its expert lies, so a row's result depends on the row alone; and as R is a
matter of the step's shape, so is the order of additions. Two launches serve any number of experts: the first gathers a
tile's rows and computes act(x @ gate) * (x @ up), the second multiplies by down and writes the rows in place.

Own code, after a look at what there is (jax 0.12): `jax.lax.ragged_dot` compiles for a GPU to dense work over all S
slots; `pallas.ops.gpu.ragged_dot_mgpu` is for Hopper alone and unrolls a loop over the S groups in every block;
megablox is for TPUs. All of them want rows sorted by slot, and none the rows gathered and put in place as they go.
Block sizes are not tuned: no GPU has run them.
Axes: N tokens, K top-k, S slots, t tiles, R rows of a tile, D model width, F expert width.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
from jaxtyping import Array, Float, Int

from expertflow_jax.models.experts import BufferLayout, ExpertLayout, Parts, run_expert
from expertflow_jax.models.layers import ACTIVATIONS

BLOCK = 64  # columns that a program computes, and numbers that it adds up at a time
LEAST_BLOCK = 16  # of a product on tensor cores


def run_tiles(
    layout: BufferLayout,
    pool: Parts,
    table: Int[Array, "t R1"],
    y: Float[Array, "N D"],
    out: Float[Array, "rows D"],
    interpreted: bool = False,
) -> Float[Array, "rows D"]:
    """Runs the experts of a pool on tiles of their rows.

    Args:
      layout: of an expert.
      pool: S experts, the arrays of one with an axis S before them.
      table: int32 [t, 1 + R]; the slot of each tile, -1 where there is none, then its rows, numbered token * K +
        choice; N * K marks padding.
      y: [N, D] MoE inputs.
      out: [N * K + 1, D], to be donated; the last row takes the padding.
      interpreted: the kernel is not compiled but carried out step by step, on any backend.

    Returns:
      `out` with the rows' outputs written.
    """
    if isinstance(layout, ExpertLayout) and (interpreted or _fits(layout)):
        return _grouped(layout, pool, table, y, out, interpreted)
    return plain_tiles(layout, pool, table, y, out)


def plain_tiles(layout: BufferLayout, pool: Parts, table: jax.Array, y: jax.Array, out: jax.Array) -> jax.Array:
    """The same, one tile after another: for experts that have to be unpacked, and to compare with."""
    top_k = (out.shape[0] - 1) // y.shape[0]

    def one(tile: jax.Array, out: jax.Array) -> jax.Array:
        slot, rows = table[tile, 0], table[tile, 1:]
        parts = tuple(jax.lax.dynamic_index_in_dim(part, jnp.maximum(slot, 0), keepdims=False) for part in pool)
        rows_R, parts = jax.lax.optimization_barrier((y.at[rows // top_k].get(mode="clip"), parts))
        result = run_expert(rows_R, *layout.unpack(parts), layout.kind).astype(out.dtype)
        return out.at[rows].set(jax.lax.optimization_barrier(result))

    return jax.lax.fori_loop(0, len(table), one, out)


def _block(size: int, most: int = BLOCK) -> int:
    """The largest power of two up to `most` that divides `size`."""
    return min(size & -size, most)


def _fits(layout: ExpertLayout) -> bool:
    return min(_block(layout.d_model), _block(layout.d_ff)) >= LEAST_BLOCK


def _grouped(
    layout: ExpertLayout, pool: Parts, table: jax.Array, y: jax.Array, out: jax.Array, interpreted: bool
) -> jax.Array:
    gate_up_pool, down_pool = pool
    tiles, rows = table.shape[0], table.shape[1] - 1
    top_k = (out.shape[0] - 1) // y.shape[0]
    wide, deep = _block(layout.d_ff), _block(layout.d_model)
    call = functools.partial(
        pl.pallas_call,
        interpret=interpreted,
        compiler_params=triton.CompilerParams(num_warps=4, num_stages=3),
    )
    hidden = call(
        functools.partial(_up, layout, top_k, wide, deep),
        grid=(tiles, layout.d_ff // wide),
        out_shape=jax.ShapeDtypeStruct((tiles, rows, layout.d_ff), y.dtype),
        name="experts_up",
    )(table, y, gate_up_pool)
    return call(
        functools.partial(_down, wide, deep),
        grid=(tiles, layout.d_model // deep),
        out_shape=jax.ShapeDtypeStruct(out.shape, out.dtype),
        input_output_aliases={3: 0},
        name="experts_down",
    )(table, hidden, down_pool, out)


def _dot(a: jax.Array, b: jax.Array) -> jax.Array:
    """a @ b summed in float32; float32 numbers are not rounded to TF32."""
    precise = jax.lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
    return jax.lax.dot(a, b, precision=precise, preferred_element_type=jnp.float32)


def _up(layout: ExpertLayout, top_k: int, wide: int, deep: int, table: Any, y: Any, gate_up: Any, hidden: Any) -> None:
    """hidden [t, R, F]: a block of `wide` columns of one tile, summed over D in steps of `deep`."""
    tile, first = pl.program_id(0), pl.program_id(1) * wide
    tokens, rows = y.shape[0], hidden.shape[1]
    slot = table[tile, 0]

    @pl.when(slot >= 0)
    def _run() -> None:
        token_R = jnp.minimum(table[tile, pl.ds(1, rows)] // top_k, tokens - 1)
        halves = 1 + layout.kind.gated

        def add(step: jax.Array, sums: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
            inner = pl.ds(step * deep, deep)
            x = y[token_R, inner]
            columns = (pl.ds(half * layout.d_ff + first, wide) for half in range(halves))
            return tuple(s + _dot(x, gate_up[slot, inner, c]) for s, c in zip(sums, columns, strict=True))

        zero = jnp.zeros((rows, wide), jnp.float32)
        gate, *up = jax.lax.fori_loop(0, layout.d_model // deep, add, (zero,) * halves)
        result = ACTIVATIONS[layout.kind.activation](gate)
        for factor in up:
            result = result * factor
        hidden[tile, :, pl.ds(first, wide)] = result.astype(hidden.dtype)


def _down(wide: int, deep: int, table: Any, hidden: Any, down: Any, _: Any, out: Any) -> None:
    """out [N * K + 1, D]: a block of `deep` columns of one tile's rows, summed over F in steps of `wide`."""
    tile, columns = pl.program_id(0), pl.ds(pl.program_id(1) * deep, deep)
    rows, d_ff = hidden.shape[1], hidden.shape[2]
    slot = table[tile, 0]

    @pl.when(slot >= 0)
    def _run() -> None:
        def add(step: jax.Array, total: jax.Array) -> jax.Array:
            inner = pl.ds(step * wide, wide)
            return total + _dot(hidden[tile, :, inner], down[slot, inner, columns])

        total = jax.lax.fori_loop(0, d_ff // wide, add, jnp.zeros((rows, deep), jnp.float32))
        out[table[tile, pl.ds(1, rows)], columns] = total.astype(out.dtype)
