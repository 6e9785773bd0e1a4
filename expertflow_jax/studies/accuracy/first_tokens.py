"""How long answers take to begin: from the moment that a batch is taken up until each of its first tokens is chosen."""

from collections.abc import Iterable

import numpy as np

from expertflow_jax.offload.clock import Clock


class FirstTokens:
    """Takes the time of each answer's first token. What a question waits before its batch begins is not counted."""

    def __init__(self, clock: Clock):
        self._clock = clock
        self._begun: dict[int, float] = {}  # by number of the question
        self.seconds: dict[int, float] = {}  # likewise, of those that have their first token

    def begin(self, numbers: Iterable[int]) -> None:
        """The batch of these questions begins."""
        self._begun |= dict.fromkeys(numbers, self._clock.now())

    def take(self, number: int, token: int) -> bool:
        """A token of this question's answer is chosen; never asks for the answer to end (`Choosing.on_token`)."""
        self.end(number)
        return False

    def end(self, number: int) -> None:
        """This question's answer has ended, with its first token if it has none yet (`Choosing.on_end`)."""
        if number not in self.seconds:
            self.seconds[number] = self._clock.now() - self._begun[number]

    @property
    def mean(self) -> float | None:
        """Mean over questions in seconds; None if there were no answers."""
        return float(np.mean(list(self.seconds.values()))) if self.seconds else None
