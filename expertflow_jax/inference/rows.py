"""Which rows each expert computes, in a form whose results do not depend on caching.

Axes: N tokens, K top-k, E experts, C rows of one expert (padded). A row is a (token, choice) pair, numbered
token * K + choice. The padding C of an expert depends only on how many rows it got, and a row's place among them
only on the routing: so however the engine splits a layer's experts into rounds, each row is computed by the same
arithmetic, and lossless runs stay bit-identical to the resident one.
"""

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np

SMALLEST_ROWS = 4  # measured on CPU with 8 sequences: 11 to 20 % faster than 8, and than 2 where experts are large
GROUP_SIZES = (8, 4, 2, 1)  # experts per compiled call: few enough calls, few enough compilations


@dataclasses.dataclass(frozen=True)
class ExpertRows:
    """Rows of every expert of one layer-step, sorted by expert."""

    order: np.ndarray  # int32 [N * K], rows sorted by expert (rows of no expert last)
    starts: np.ndarray  # int64 [E], where an expert's rows begin in `order`
    counts: np.ndarray  # int64 [E]
    smallest: int

    @property
    def needed(self) -> np.ndarray:
        """Experts with at least one row, ascending: int32 [n]."""
        return np.flatnonzero(self.counts).astype(np.int32)

    def padded(self, expert: int) -> int:
        """C of this expert: its number of rows rounded up to a power of two."""
        count = int(self.counts[expert])
        return max(self.smallest, 1 << (count - 1).bit_length())

    def groups(self, experts: Sequence[int]) -> Iterator[tuple[tuple[int, ...], np.ndarray]]:
        """Splits `experts` into groups of equal padding: yields (positions in `experts`, rows int32 [n, C])."""
        by_padding: dict[int, list[int]] = {}
        for position, expert in enumerate(experts):
            by_padding.setdefault(self.padded(expert), []).append(position)
        nothing = self.order.size
        for padding, positions in sorted(by_padding.items()):
            while positions:
                size = next(s for s in GROUP_SIZES if s <= len(positions))
                chosen, positions = positions[:size], positions[size:]
                rows = np.full((size, padding), nothing, np.int32)
                for i, position in enumerate(chosen):
                    expert = experts[position]
                    start, count = self.starts[expert], self.counts[expert]
                    rows[i, :count] = self.order[start : start + count]
                yield tuple(chosen), rows


def expert_rows(expert_ids: np.ndarray, num_experts: int) -> ExpertRows:
    """Sorts the rows of a layer-step by expert.

    Args:
      expert_ids: int32 [N, K], -1 where there is nothing to compute.
      num_experts: E.
    """
    flat = expert_ids.reshape(-1)
    keys = np.where(flat < 0, num_experts, flat)
    counts = np.bincount(keys, minlength=num_experts + 1)[:num_experts]
    order = np.argsort(keys, kind="stable").astype(np.int32)
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
    tokens = expert_ids.shape[0]
    smallest = min(SMALLEST_ROWS, 1 << max(tokens - 1, 0).bit_length())
    return ExpertRows(order, starts, counts, smallest)
