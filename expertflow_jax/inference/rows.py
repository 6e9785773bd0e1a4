"""Which rows each expert computes, in a form whose results do not depend on caching.

Axes: N tokens, K top-k, E experts, C rows of one expert (padded). A row is a (token, choice) pair, numbered
token * K + choice. The padding C of an expert depends only on how many rows it got, and a row's place among them
only on the routing: so however the engine splits a layer's experts into rounds, each row is computed by the same
arithmetic, and lossless runs stay bit-identical to the resident one. Where experts lie in a pool, rows go in tiles of R
rows, whatever their number (see `models.expert_kernel`).
"""

import bisect
import dataclasses
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from expertflow_jax.models.device_form import IN_PLACE, DeviceForm

SMALLEST_ROWS = 4  # measured on CPU with 8 sequences: 11 to 20 % faster than 8, and than 2 where experts are large
GROUP_SIZES = (8, 4, 2, 1)  # experts per compiled call: few enough calls, few enough compilations
FEW_ROWS = 32  # beyond so many the work outweighs the call, and two sizes do
GROUP_SIZES_OF_MANY = (4, 1)
LEAST_TILE, MOST_TILE = 16, 64  # rows: what tensor cores multiply at least; beyond, a tile's sums take registers
NO_EXPERT = -2  # -1 is the choice of a token that goes through no expert
TILE_COUNTS = (2, 4, 8, 16, 32, 64)  # per compiled call; never one, which would be compiled without a loop


def group_sizes(padding: int) -> tuple[int, ...]:
    """How many experts of `padding` rows each one call may take, most first."""
    return GROUP_SIZES if padding <= FEW_ROWS else GROUP_SIZES_OF_MANY


def smallest_rows(tokens: int, form: DeviceForm = IN_PLACE) -> int:
    """C of an expert with a single row, in a step of N tokens."""
    return min(SMALLEST_ROWS, max(form.least_rows, 1 << max(tokens - 1, 0).bit_length()))


def paddings(tokens: int, form: DeviceForm = IN_PLACE) -> list[int]:
    """Every C of an expert in a step of N tokens, ascending."""
    sizes = [smallest_rows(tokens, form)]
    while sizes[-1] < tokens:
        sizes.append(2 * sizes[-1])
    return sizes


def group_shapes(
    tokens: int, top_k: int, num_experts: int, most_rows: int | None = None, form: DeviceForm = IN_PLACE
) -> list[tuple[int, int]]:
    """Every (n, C) of a group that a step of N tokens may run, whatever its routing and the order of arrivals.

    Args:
      most_rows: of one expert, where it is known; None: all N.
    """
    most, shapes, least = tokens if most_rows is None else most_rows, [], 1
    if form.pooled:
        size = tile_rows(tokens, top_k, num_experts)
        tiles = min(tokens * top_k, min(num_experts, tokens * top_k) * -(-most // size))
        return [(count, size) for count in TILE_COUNTS[: bisect.bisect_left(TILE_COUNTS, tiles) + 1]]
    for padding in paddings(tokens, form):
        if least > most:
            break
        experts = min(num_experts, tokens * top_k // least)
        shapes += [(size, padding) for size in group_sizes(padding) if size <= experts]
        least = padding + 1  # rows of an expert that takes the next size
    return shapes


def tile_rows(tokens: int, top_k: int, num_experts: int) -> int:
    """R of a tile of a pool's kernel: about the rows that an expert gets, so a matter of the step's shape alone."""
    mean = tokens * top_k // num_experts
    return min(MOST_TILE, max(LEAST_TILE, 1 << max(mean - 1, 0).bit_length()))


def tiles_among(expert_ids: Int[jax.Array, "*N K"], experts: Int[jax.Array, "t"], size: int) -> Int[jax.Array, "t R"]:
    """Rows of experts that have one tile each, found on the device among the choices; `NO_EXPERT` has none."""
    flat = expert_ids.reshape(-1)
    chosen = flat == experts[:, None]  # [t, N * K]
    place = jnp.where(chosen, jnp.cumsum(chosen, axis=1) - 1, size)
    tile, row = jnp.indices(chosen.shape, jnp.int32)
    return jnp.full((len(experts), size), flat.size, jnp.int32).at[tile, place].set(row, mode="drop")


@dataclasses.dataclass(frozen=True)
class ExpertRows:
    """Rows of every expert of one layer-step, sorted by expert."""

    order: np.ndarray  # int32 [N * K], rows sorted by expert (rows of no expert last)
    starts: np.ndarray  # int64 [E], where an expert's rows begin in `order`
    counts: np.ndarray  # int64 [E]
    smallest: int
    tile: int = 0  # R where experts lie in a pool

    @property
    def needed(self) -> np.ndarray:
        """Experts with at least one row, ascending: int32 [n]."""
        return np.flatnonzero(self.counts).astype(np.int32)

    def padded(self, expert: int) -> int:
        """C of this expert: its number of rows rounded up to a power of two."""
        count = int(self.counts[expert])
        return max(self.smallest, 1 << (count - 1).bit_length())

    def groups(self, experts: Sequence[int]) -> Iterator[tuple[tuple[int, ...], np.ndarray]]:
        """Splits those of `experts` that have rows into groups of equal padding: yields (positions in `experts`, rows
        int32 [n, C]). Where experts lie in a pool, n are tiles of C = R rows, several of an expert that has more, and
        some rows at the end may be of none."""
        if self.tile:
            yield from self._tiles(experts)
            return
        by_padding: dict[int, list[int]] = {}
        for position, expert in enumerate(experts):
            if self.counts[expert]:
                by_padding.setdefault(self.padded(expert), []).append(position)
        nothing = self.order.size
        for padding, positions in sorted(by_padding.items()):
            sizes = group_sizes(padding)
            while positions:
                size = next(s for s in sizes if s <= len(positions))
                chosen, positions = positions[:size], positions[size:]
                rows = np.full((size, padding), nothing, np.int32)
                for i, position in enumerate(chosen):
                    expert = experts[position]
                    start, count = self.starts[expert], self.counts[expert]
                    rows[i, :count] = self.order[start : start + count]
                yield tuple(chosen), rows

    def _tiles(self, experts: Sequence[int]) -> Iterator[tuple[tuple[int, ...], np.ndarray]]:
        tiles = [
            (position, first)
            for position, expert in enumerate(experts)
            for first in range(0, int(self.counts[expert]), self.tile)
        ]
        for start in range(0, len(tiles), TILE_COUNTS[-1]):
            group = tiles[start : start + TILE_COUNTS[-1]]
            size = TILE_COUNTS[bisect.bisect_left(TILE_COUNTS, len(group))]
            rows = np.full((size, self.tile), self.order.size, np.int32)
            for i, (position, first) in enumerate(group):
                begin, count = self.starts[experts[position]], self.counts[experts[position]]
                part = self.order[begin + first : begin + min(first + self.tile, count)]
                rows[i, : len(part)] = part
            yield tuple(position for position, _ in group), rows


def expert_rows(expert_ids: Int[np.ndarray, "N K"], num_experts: int, form: DeviceForm = IN_PLACE) -> ExpertRows:
    """Sorts the rows of a layer-step by expert.

    Args:
      expert_ids: int32 [N, K], -1 where there is nothing to compute.
      num_experts: E.
      form: of the device, which says how few rows an expert may have.
    """
    flat = expert_ids.reshape(-1)
    counts = np.bincount(flat + 1, minlength=num_experts + 1)[1:]
    # Of 8 or 16 bits, because NumPy sorts those by radix, 3 to 5 times faster; -1 becomes the largest and comes last.
    keys = flat.astype(np.min_scalar_type(num_experts))
    order = np.argsort(keys, kind="stable").astype(np.int32)
    starts = np.cumsum(counts) - counts
    tokens, top_k = expert_ids.shape
    tile = tile_rows(tokens, top_k, num_experts) if form.pooled else 0
    return ExpertRows(order, starts, counts, smallest_rows(tokens, form), tile)
