"""Ctrl-C and SIGTERM end a command between two pieces of work, its files whole, even if a callback swallowed them.

Python raises what a signal's handler raises wherever the program happens to be. Inside a callback of C++ code (JAX
calls one at every garbage collection) the exception is printed and lost. So the handler also notes the signal, and
loops over batches, steps and cells call `check`. And a program that does not come back from C++ for long (XLA compiles
for minutes) is ended from outside: whatever is half-written then is what a kill leaves, which every command mends.
"""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Collection, Iterator
from types import FrameType


class Terminated(KeyboardInterrupt):
    """SIGTERM: ends a command as Ctrl-C does."""


_KINDS: dict[int, type[KeyboardInterrupt]] = {signal.SIGINT: KeyboardInterrupt, signal.SIGTERM: Terminated}
_WORDS = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}
GRACE = 5.0  # seconds until a command that has not ended by itself is ended
_noted: list[int] = []  # signals that came and have not ended the command yet


def farewell(number: int) -> str:
    """What a command says that this signal has ended; its exit code is 128 + number."""
    return f"{_WORDS[signal.Signals(number)]}; rerun the same command to resume"


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
    over = _end_in_time(heeded)
    try:
        yield
        check()
    finally:
        over()
        _noted.clear()
        for number in heeded:
            signal.signal(number, before[number])


def _end_in_time(numbers: Collection[int]) -> Callable[[], None]:
    """Ends the process `GRACE` seconds after one of these signals; returns what calls that off.

    Python writes a signal's number to the wakeup descriptor at once, where its handler has to wait for the interpreter.
    """
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    over = threading.Event()

    def watch() -> None:
        while (number := next(iter(os.read(reader, 1)), None)) is not None:
            if number in numbers and not over.wait(GRACE):
                os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, f"{farewell(number)}\n".encode())
                os._exit(128 + number)
        os.close(reader)

    threading.Thread(target=watch, name="interrupts", daemon=True).start()

    def call_off() -> None:
        over.set()
        signal.set_wakeup_fd(before)
        os.close(writer)

    return call_off
