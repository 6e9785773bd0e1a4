"""What the routing path predictor says of a block, on one cache for all the batches that it has read.

Axes: M members, B sequences, T tokens, D model width, L MoE layers, E experts.
"""

import contextlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float

from expertflow_jax.inference.forecasting import Queue, join_horizon
from expertflow_jax.inference.members import Member
from expertflow_jax.offload.clock import Clock
from expertflow_jax.predictor.forecast import combine_batches, combine_sequences, wants_nearly_all
from expertflow_jax.predictor.runtime import Predictor, PredictorCache
from expertflow_jax.simulation.costs import ComputeCosts


class Foretold(NamedTuple):
    """P(use) of each expert by one member: by this step's tokens, and by those after each active sequence's last."""

    now: Float[np.ndarray, "L E"]
    following: Float[np.ndarray, "L E"]


class PredictedForecast:
    """The routing path predictor on all members, with its own cost on the clock.

    Where so many tokens go through every layer that nearly all experts are wanted whatever it says
    (`wants_nearly_all`), it does not run. What it has not read it cannot go on with: from then on such batches are
    foretold by their number of tokens and the popularity of experts.

    Attributes:
      tokens_saved: that it did not have to read.
    """

    def __init__(self, predictor: Predictor, clock: Clock, costs: ComputeCosts | None):
        self.tokens_saved = 0
        self._predictor = predictor
        self._clock = clock
        self._costs = costs
        self._cache: PredictorCache | None = None  # of the batches that it has read, one behind the other
        self._sizes: dict[int, int] = {}  # B of these batches by number, in the cache's order
        self._queue: Queue = ()

    def expect(self, queued: Queue) -> None:
        self._queue = queued

    def horizon(self, members: Sequence[Member], ends: Sequence[bool]) -> Float[np.ndarray, "H L E"] | None:
        foretold = self.foretell(members)
        following = [part.following for part, end in zip(foretold, ends, strict=True) if not end]
        return join_horizon(combine_batches([part.now for part in foretold]), following, self._queue, sum(ends))

    def foretell(self, members: Sequence[Member]) -> list[Foretold]:
        """What the coming super-step, and the one after it, will use of each member's account."""
        tokens = sum(int(member.lengths.sum()) for member in members)
        if self._certain(members):
            self._cache, self._sizes = None, {}
            self.tokens_saved += tokens
            everything = np.ones_like(self._predictor.popularity)
            return [Foretold(everything, self._by_popularity(member.followers_by_layer)) for member in members]
        missed = {m.sequences.batch for m in members if m.phase == "decode"} - self._sizes.keys()
        self.tokens_saved += sum(int(m.lengths.sum()) for m in members if m.sequences.batch in missed)
        read = self._read([member for member in members if member.sequences.batch not in missed])
        return [
            read.get(member.sequences.batch)
            or Foretold(self._by_popularity(member.tokens_by_layer), self._by_popularity(member.followers_by_layer))
            for member in members
        ]

    def _certain(self, members: Sequence[Member]) -> bool:
        config = self._predictor.config
        tokens_L = np.broadcast_to(sum(member.tokens_by_layer for member in members), config.moe_layers)
        return wants_nearly_all(int(tokens_L.min()), config.top_k, config.num_experts)

    def _by_popularity(self, tokens_L: np.ndarray | int) -> Float[np.ndarray, "L E"]:
        """P(use) by so many tokens of whom nothing is known."""
        return (1 - (1 - self._predictor.popularity) ** np.reshape(tokens_L, (-1, 1))).astype(np.float32)

    def _read(self, members: Sequence[Member]) -> dict[int, Foretold]:
        """Runs the predictor over what the members read; by number of their batches."""
        order = list(self._sizes)
        going_on = sorted((m for m in members if m.phase == "decode"), key=lambda m: order.index(m.sequences.batch))
        self._keep([member.sequences.batch for member in going_on])
        # One call for all tokens that follow. Prompts are read batch by batch: their temporaries are the largest.
        groups = [[member] for member in members if member.phase == "prefill"]
        if going_on:
            groups.insert(0, going_on)
        read = [member for group in groups for member in group]
        if not read:
            return {}
        caches, uses = [], []  # uses: float64 [B, L, E] of each group
        with predictor_time(self._clock, self._costs, sum(int(member.lengths.sum()) for member in read)):
            for group in groups:
                # After the prompts every sequence is read on, also one that has stopped; what it would use is left out.
                lengths, cache = (None, self._cache) if group is going_on else (group[0].lengths, None)
                use, cache = self._predictor.forecast(_stacked([m.x for m in group]), lengths, cache, _visits(group))
                caches.append(cache)
                uses.append(use)
            self._cache = caches[0] if len(caches) == 1 else PredictorCache.concatenate(caches)
        self._sizes = {member.sequences.batch: len(member.lengths) for member in read}
        starts = np.cumsum(list(self._sizes.values()))[:-1]
        parts = zip(read, np.split(np.concatenate(uses), starts), np.split(self._cache.following, starts), strict=True)
        return {member.sequences.batch: _foretold(member, use, following) for member, use, following in parts}

    def _keep(self, batches: Sequence[int]) -> None:
        """Forgets all batches but these, which are named in the cache's order."""
        if list(self._sizes) != batches:
            rows = np.repeat(np.isin(list(self._sizes), batches), list(self._sizes.values()))
            self._cache = None if self._cache is None or not batches else self._cache.select(np.flatnonzero(rows))
            self._sizes = {batch: self._sizes[batch] for batch in batches}


def _stacked(parts: Sequence[jax.Array]) -> jax.Array:
    """Members' x [B, T, D] of one T, one behind the other."""
    return parts[0] if len(parts) == 1 else jnp.concatenate(parts)


def _visits(members: Sequence[Member]) -> Bool[np.ndarray, "B T L"] | None:
    """Theirs, one behind the other; None: all layers."""
    visits = [member.visits for member in members if member.visits is not None]
    return np.concatenate(visits) if visits else None


def _foretold(member: Member, use: Float[np.ndarray, "B L E"], following: Float[np.ndarray, "B L E"]) -> Foretold:
    """Of the predictor's words on each sequence."""
    active = member.lengths > 0
    if member.sequences.visits is not None:
        following = following * member.sequences.visits["decode"][:, 0, :, None]
    return Foretold(combine_sequences(use[active]), combine_sequences(following[active]))


@contextlib.contextmanager
def predictor_time(clock: Clock, costs: ComputeCosts | None, tokens: int, name: str = "") -> Iterator[None]:
    """Books a run of the predictor over `tokens`: its recorded cost, or on the real clock what it takes."""
    if costs is None:
        with clock.measure("predictor", name):
            yield
    else:
        yield
        clock.spend(costs.predictor_seconds(tokens), "predictor", name)
