"""What the engine counts, by the row keys of DESIGN section 5. See `engine.py` for the words."""

import numpy as np

from expertflow_jax.offload.slots import SlotPool

KINDS = (
    *("hits", "late", "misses", "corrections", "prefetches", "urgent_transfers", "background_transfers"),
    *("evictions", "wasted_prefetches", "bytes_transferred", "disk_reads", "disk_bytes", "layer_steps", "steps"),
)
_OF_TRANSFER = {"urgent": "urgent_transfers", "prefetch": "prefetches", "background": "background_transfers"}


class Counts(dict[str, int]):
    """Integers by kind, all zero at first."""

    def __init__(self) -> None:
        super().__init__()
        self.reset()

    def reset(self) -> None:
        """All are zero again."""
        self.update(dict.fromkeys(KINDS, 0))

    def layer_step(self, pool: SlotPool, slots: np.ndarray, hit: np.ndarray) -> None:
        """A layer has asked for experts in these slots, int [n], -1 where there is none; hit bool [n]: arrived."""
        hits = int(np.count_nonzero(hit))
        missing = 0 if hits == len(slots) else int(np.count_nonzero(slots < 0))
        self["layer_steps"] += 1
        self["hits"] += hits
        self["misses"] += missing
        self["late"] += len(slots) - hits - missing
        pool.unused_prefetch[slots] = False

    def transfer(self, kind: str, nbytes: int, evicts: bool, wasted: bool) -> None:
        """A transfer starts; `wasted`: what it evicts was prefetched in vain."""
        self[_OF_TRANSFER[kind]] += 1
        self["bytes_transferred"] += nbytes
        if evicts:
            self["evictions"] += 1
            self["wasted_prefetches"] += wasted

    @property
    def hit_rate(self) -> float:
        """1 if nothing was asked for."""
        requests = self["hits"] + self["late"] + self["misses"]
        return self["hits"] / requests if requests else 1.0
