"""The physical limit: no lossless run can be faster than its compute, nor than the bytes that must move at least.

The least number of transfers from a given cache content is Belady's (1966): evict what is needed last. A layer-step
asks for a set and may serve it in any order: experts that are there come first, then the missing ones, those needed
again last of all first, since their slots may go to the others; a transfer needs a slot, so there is no bypass.
Prefetching can move transfers in time but not below this number, so

    seconds >= max(resident seconds, least bytes / link bandwidth).

That is the limit of the order in which the steps ran. The order is free, too: batches that go through the layers
together ask for an expert once (`super_steps`), and the best order has all batches of the window in one block.

Axes: N steps, L MoE layers, E experts. A key is layer * E + expert.
"""

import dataclasses
import heapq
from collections.abc import Iterable

import numpy as np
from jaxtyping import Bool

from expertflow_jax.offload.link import LinkSpec

NEVER = np.iinfo(np.int64).max


@dataclasses.dataclass(frozen=True)
class Limit:
    """Of one order of work.

    Attributes:
      least_bytes: that an offline-optimal cache moves.
      seconds: no lossless run is faster.
    """

    least_bytes: int
    seconds: float


def limit_of(
    needed: Bool[np.ndarray, "N L E"],
    slots: int,
    inside: Iterable[int],
    *,
    resident_seconds: float,
    expert_bytes: int,
    link: LinkSpec,
) -> Limit:
    """The limit of super-steps that ask for these experts. Arguments as of `least_transfers` and `limit_seconds`."""
    least = least_transfers(needed, slots, inside) * expert_bytes
    return Limit(least, limit_seconds(resident_seconds, least, link))


def least_transfers(needed: np.ndarray, slots: int, inside: Iterable[int] = ()) -> int:
    """Transfers of an offline-optimal cache.

    Args:
      needed: bool [N, L, E], what every layer-step asks for.
      slots: S.
      inside: keys in the slots at the beginning, at most S.
    """
    layer_steps = [row.nonzero()[0] + layer * needed.shape[2] for step in needed for layer, row in enumerate(step)]
    following = _following_uses(layer_steps, needed.shape[1] * needed.shape[2])
    first = np.full(needed.shape[1] * needed.shape[2], NEVER)
    for time in range(len(layer_steps) - 1, -1, -1):
        first[layer_steps[time]] = time
    next_use = {int(key): int(first[key]) for key in inside}
    furthest = [(-use, key) for key, use in next_use.items()]
    heapq.heapify(furthest)
    transfers = 0
    for keys, uses in zip(layer_steps, following, strict=True):
        pairs = list(zip(keys.tolist(), uses.tolist(), strict=True))
        missing = [pair for pair in pairs if pair[0] not in next_use]
        for key, use in pairs:
            if key in next_use:
                next_use[key] = use
                heapq.heappush(furthest, (-use, key))
        for key, use in sorted(missing, key=lambda pair: -pair[1]):
            if len(next_use) >= slots:
                _evict(furthest, next_use)
            next_use[key] = use
            heapq.heappush(furthest, (-use, key))
            transfers += 1
    return transfers


def super_steps(needed: Bool[np.ndarray, "N L E"], batches: int, batches_per_block: int) -> Bool[np.ndarray, "n L E"]:
    """What the super-steps of blocks ask for: the union over the members of a block, step by step.

    Args:
      needed: what every step asks for, one batch after another.
      batches: of as many steps each.
      batches_per_block: members of a block; `batches`: the best order, each expert once per super-step of the window.
    """
    by_batch = needed.reshape(batches, len(needed) // batches, *needed.shape[1:])
    blocks = [by_batch[first : first + batches_per_block].any(0) for first in range(0, batches, batches_per_block)]
    return np.concatenate(blocks)


def _evict(furthest: list[tuple[int, int]], next_use: dict[int, int]) -> None:
    while True:
        use, key = heapq.heappop(furthest)
        if next_use.get(key) == -use:
            del next_use[key]
            return


def _following_uses(layer_steps: list[np.ndarray], num_keys: int) -> list[np.ndarray]:
    """For every layer-step, when each of its keys is asked for next."""
    soonest = np.full(num_keys, NEVER)
    following = []
    for time in range(len(layer_steps) - 1, -1, -1):
        following.append(soonest[layer_steps[time]])
        soonest[layer_steps[time]] = time
    return following[::-1]


def limit_seconds(resident_seconds: float, least_bytes: int, link: LinkSpec) -> float:
    """The least time of a lossless run; a `direct` link, whose speed is not stated, adds nothing."""
    return max(resident_seconds, link.seconds_on_link(least_bytes))
