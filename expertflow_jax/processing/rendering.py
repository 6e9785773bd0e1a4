"""Chat templates are rendered in a process of their own, which `template_worker` describes: this side of it.

One process serves all templates. It starts with the first prompt and ends with this process, whose end closes its
input; it is ended and started anew when a prompt takes too long.
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

from expertflow_jax.processing.template_worker import MEMORY, SECONDS, frame

WALL_SECONDS = 30.0  # for one prompt with the process's start; its own limit, in processor time, comes before


class Refusal(Exception):
    """The template raised an error, or reached a limit; the message says which."""


class _Worker:
    """The process, and whose it is: a forked copy of this process must not write into the same pipe."""

    def __init__(self) -> None:
        script = Path(__file__).with_name("template_worker.py")
        self.owner = os.getpid()
        self._process = subprocess.Popen(
            [sys.executable, "-P", str(script)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            start_new_session=True,  # an interrupt at the terminal is for this process alone
            bufsize=0,
        )

    def ask(self, request: bytes) -> dict[str, str]:
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
                raise Refusal(f"the process that renders it, {sys.executable}, ended with code {code}") from error
            raise Refusal(f"it needs more than {SECONDS} s or {MEMORY >> 20} MiB") from error

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


_lock = threading.Lock()
_worker: _Worker | None = None


def render(source: str, variables: dict[str, Any]) -> str:
    """What a template makes of its variables, which are turned into plain JSON values first.

    Raises:
      Refusal: the template fails, or needs more memory or time than it may.
    """
    global _worker
    try:
        request = json.dumps([source, variables], default=_placeholder, skipkeys=True).encode()
    except (ValueError, RecursionError) as error:
        raise Refusal(f"the messages are no plain values ({error})") from error
    with _lock:
        if _worker is None or _worker.owner != os.getpid():
            _worker = _Worker()
        worker, answered = _worker, False
        try:
            answer = worker.ask(request)
            answered = "end" not in answer
        finally:
            if not answered:  # also after an interrupt, lest its answer be taken for the next one's
                _worker = None
                worker.end()
    if "text" not in answer:
        raise Refusal(answer["refused"])
    return answer["text"]


def _placeholder(value: Any) -> Any:
    """Numbers of numpy as Python's; of pictures and arrays templates see that they are there and no more."""
    item = getattr(value, "item", None)
    if callable(item) and getattr(value, "shape", None) == ():
        return item()
    if hasattr(value, "keys"):
        return {key: value[key] for key in value}
    return f"<{type(value).__name__}>"
