"""What a checkpoint's files could make endless runs in a process apart, which `apart_main` describes: this side of it.

One process serves all requests of a kind. It starts with the first and ends with this process, whose end closes its
input; it is ended and started anew when a request takes too long.
"""

import json
import os
import select
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from expertflow_jax.processing.apart_main import frame

WALL_SECONDS = 20.0  # for one request with the process's start; its own limit, in processor time, comes before


class Refusal(Exception):
    """What was asked for failed, or reached a limit; the message says which."""


class _Process:
    """The process, and whose it is: a forked copy of this process must not write into the same pipe."""

    def __init__(self, script: str, memory: int, seconds: int):
        self.owner = os.getpid()
        self._limits = f"{seconds} s or {memory >> 20} MiB"
        folder = Path(__file__).parent
        self._process = subprocess.Popen(
            [sys.executable, "-P", folder / "apart_main.py", folder / script, str(memory), str(seconds)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            start_new_session=True,  # an interrupt at the terminal is for this process alone
            bufsize=0,
        )

    def ask(self, request: bytes) -> dict[str, Any]:
        """The answer; raises Refusal if none comes within the limits."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        pipe, deadline = self._process.stdout.fileno(), time.monotonic() + WALL_SECONDS
        try:
            data = memoryview(frame(request))
            while data:
                data = data[self._process.stdin.write(data) :]
            (length,) = struct.unpack("<Q", self._read(pipe, 8, deadline))
            return json.loads(self._read(pipe, length, deadline))
        except TimeoutError as error:
            raise Refusal(f"it needs more than {WALL_SECONDS:.0f} s") from error
        except (OSError, EOFError) as error:
            code = self._process.wait()
            if code > 0:  # rather than a signal
                raise Refusal(f"the process that does it, {sys.executable}, ended with code {code}") from error
            raise Refusal(f"it needs more than {self._limits}") from error

    def _read(self, pipe: int, length: int, deadline: float) -> bytes:
        body = bytearray()
        waiting = select.poll()
        waiting.register(pipe, select.POLLIN)
        while len(body) < length:
            if not waiting.poll(max(deadline - time.monotonic(), 0) * 1000):  # reads what is there, however late
                raise TimeoutError
            piece = os.read(pipe, min(length - len(body), 1 << 20))
            if not piece:
                raise EOFError
            body += piece
        return bytes(body)

    def end(self) -> None:
        """Ends the process, whatever it does."""
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()
        self._process.kill()
        self._process.wait()


class Apart:
    """A process that answers requests of one kind, one after another, whichever thread asks."""

    def __init__(self, script: str, memory: int, seconds: int):
        """
        Args:
          script: file of this folder with a function `answer`; it imports nothing of the package.
          memory: bytes that the process may use.
          seconds: of processor time for one request.
        """
        self._arguments = (script, memory, seconds)
        self._lock = threading.Lock()
        self._process: _Process | None = None

    def ask(self, *request: Any) -> Any:
        """The "value" of what `answer` returns for this request, a JSON value.

        Raises:
          Refusal: it fails, or needs more memory or time than it may.
        """
        try:
            body = json.dumps(request, default=_placeholder, skipkeys=True).encode()
        except (ValueError, RecursionError) as error:
            raise Refusal(f"what it is given is no plain value ({error})") from error
        with self._lock:
            if self._process is None or self._process.owner != os.getpid():
                self._process = _Process(*self._arguments)
            process, answered = self._process, False
            try:
                answer = process.ask(body)
                answered = "end" not in answer
            finally:
                if not answered:  # also after an interrupt, lest its answer be taken for the next one's
                    self._process = None
                    process.end()
        if "value" not in answer:
            raise Refusal(answer["refused"])
        return answer["value"]


def _placeholder(value: Any) -> Any:
    """Numbers of numpy as Python's; of pictures and arrays templates see that they are there and no more."""
    item = getattr(value, "item", None)
    if callable(item) and getattr(value, "shape", None) == ():
        return item()
    if hasattr(value, "keys"):
        return {key: value[key] for key in value}
    return f"<{type(value).__name__}>"
