"""Ctrl-C and SIGTERM end a command between two pieces of work, its files whole, even if a callback swallowed them.

Python raises what a signal's handler raises wherever the program happens to be. Inside a callback of C++ code (JAX
calls one at every garbage collection) the exception is printed and lost. So the handler also notes the signal, and
loops over batches, steps and cells call `check`.
"""

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType


class Terminated(KeyboardInterrupt):
    """SIGTERM: ends a command as Ctrl-C does."""


_KINDS: dict[int, type[KeyboardInterrupt]] = {signal.SIGINT: KeyboardInterrupt, signal.SIGTERM: Terminated}
_noted: list[int] = []  # signals that came and have not ended the command yet


def check() -> None:
    """Raises what the first signal of this command should have raised, if one came and was swallowed."""
    if _noted:
        raise _KINDS[_noted[0]]


@contextlib.contextmanager
def noted() -> Iterator[None]:
    """Notes SIGINT and SIGTERM while the block runs, and raises them; as it ends, also what was swallowed in it.

    Only the main thread may set handlers; in another one the block runs as it is.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handle(number: int, frame: FrameType | None) -> None:
        _noted.append(number)
        raise _KINDS[number]

    before = {number: signal.getsignal(number) for number in _KINDS}
    heeded = [number for number, handler in before.items() if handler is not signal.SIG_IGN]  # nohup's stay ignored
    for number in heeded:
        signal.signal(number, handle)
    try:
        yield
        check()
    finally:
        _noted.clear()
        for number in heeded:
            signal.signal(number, before[number])
