"""Every tuned number of `expertflow` and of what it is told about time, with the measurement behind each.

A config names them as options: policy="expertflow(gain=1.2, likely=0.4)".
"""

import dataclasses

from expertflow_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class Tuning:
    """Attributes:
    memory: weight of the latest step in an expert's running frequency. On made-up routing (24 runs: 6 traces, two cache
      fractions, two links) 0.02, 0.05 and 0.2 took 0.998, 0.999 and 1.000 of the time with forecasts, and 1.025, 1.009
      and 1.006 without any.
    first_guess: frequency of an expert before its layer has been seen. A guess; its effect has not been measured.
    gain: a prefetch must be worth this many times its victim. In the same runs 1, 1.02, 1.25, 1.5 and 2 took 0.9999 to
      1.0004 of the time with forecasts and 0.9988 to 1.0001 without: it only keeps near ties from travelling.
    likely: a prefetch must be first used in one step at least this likely, by the share of the time in which compute
      does not wait: ((share from which it holds, chance), ...), falling to share 0; or one chance for all. A transfer
      in vain delays the next correction, which costs the more the less there is to hide it behind; and it has to
      choose its victim before the running layer's experts are free to go, so that in the end only what is certain
      travels unasked. On the recorded routing of five models, over links from 20 times faster than theirs to twice as
      slow, no one chance from 0 to 1 did as well as these three.
    starved: below this share every transfer counts (see `ExpertFlow`). Set by hand; other values were not compared.
    balance_memory: weight of the latest step in that share. Set by hand as well.
    balance_unknown: that share before the first step has ended; of 0, 0.2, 0.4 and 1 the best on recorded routing.
    """

    memory: float = 0.1
    first_guess: float = 0.1
    gain: float = 1.1
    likely: float | tuple[tuple[float, float], ...] = ((0.5, 0.3), (0.15, 0.75), (0.0, 1.0))
    starved: float = 0.25
    balance_memory: float = 0.3
    balance_unknown: float = 0.4

    def __post_init__(self) -> None:
        for name in ("memory", "first_guess", "starved", "balance_memory", "balance_unknown"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"policy option {name}={getattr(self, name)!r}: give a number from 0 to 1")
        if not 1 <= self.gain < float("inf"):
            raise InputError(f"policy option gain={self.gain!r}: give a number of at least 1")
        if self.likely_by_share[-1][0] > 0:
            raise InputError(f"policy option likely={self.likely!r}: the last of its pairs must begin at share 0")

    @property
    def likely_by_share(self) -> tuple[tuple[float, float], ...]:
        """`likely` as pairs."""
        return self.likely if isinstance(self.likely, tuple) else ((0.0, self.likely),)

    def least_chance(self, working: float) -> float:
        """How likely a prefetch must be where compute does not wait for this share of the time."""
        return next(chance for share, chance in self.likely_by_share if working >= share)
