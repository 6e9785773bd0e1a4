"""Answers requests in a process of its own, under limits of memory and time (run as a script by `apart`).

    python apart_main.py WORKER.py BYTES SECONDS

WORKER.py has a function `answer(*request) -> JSON value`, which may raise anything. Each request and each answer is a
JSON text behind its length in 8 bytes; an answer is {"value": ...}, or what went wrong: {"refused": ...}. This file and
the workers import nothing of the package, so that the process is small and starts at once.
"""

import importlib.util
import json
import math
import struct
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO


def read_frame(stream: BinaryIO) -> bytes | None:
    """The next text, None at the end of the stream."""
    head = stream.read(8)
    if len(head) < 8:
        return None
    (length,) = struct.unpack("<Q", head)
    body = stream.read(length)
    return body if len(body) == length else None


def frame(body: bytes) -> bytes:
    """A text behind its length."""
    return struct.pack("<Q", len(body)) + body


def _answer(function: Callable[..., Any], request: bytes, memory: int) -> tuple[bytes, bool]:
    """The answer, and whether another may follow; what was out of memory would be short of it for the next."""
    refusal: dict[str, Any]
    try:
        return json.dumps({"value": function(*json.loads(request))}).encode(), True
    except MemoryError:
        refusal = {"refused": f"it needs more than {memory >> 20} MiB of memory", "end": True}
    except RecursionError:
        refusal = {"refused": "it is nested too deeply"}
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # also what a Rust library panics with
        refusal = {"refused": str(error)[:2000] or type(error).__name__}
    return json.dumps(refusal).encode(), "end" not in refusal


def main(worker: str, memory: int, seconds: int) -> None:
    """Answers requests until there are no more."""
    try:
        import resource
    except ImportError:  # Windows, where only the other side's clock limits
        resource = None  # type: ignore[assignment]
    if resource is not None:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    spec = importlib.util.spec_from_file_location(Path(worker).stem, worker)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    while (request := read_frame(sys.stdin.buffer)) is not None:
        if resource is not None:
            _, most = resource.getrlimit(resource.RLIMIT_CPU)
            resource.setrlimit(resource.RLIMIT_CPU, (math.ceil(time.process_time()) + seconds, most))
        body, goes_on = _answer(module.answer, request, memory)
        sys.stdout.buffer.write(frame(body))
        sys.stdout.buffer.flush()
        if not goes_on:
            return


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
