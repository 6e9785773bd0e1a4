"""Who may use a model: one thread after another, until somebody closes it."""

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

from expertflow_jax.errors import InputError


class Turns:
    """Calls that wait for each other, and end in one error once `close` has been called.

    Attributes:
      closed: nothing works any more.
    """

    def __init__(self) -> None:
        self.closed = False
        self._lock = threading.RLock()
        self._holder = ""  # what runs at present
        self._callback_error: BaseException | None = None

    def check_open(self) -> None:
        """Raises InputError if the model is closed."""
        if self.closed:
            raise InputError("the model is closed; load it again with from_pretrained")

    @contextlib.contextmanager
    def take(self, call: str) -> Iterator[None]:
        """Waits for other threads' calls to end, and keeps them out meanwhile.

        Raises:
          InputError: the model is closed, before or meanwhile, whatever that broke inside; or this thread is inside
            another call already, as a stream callback is.
        """
        with self._lock:
            self.check_open()
            if self._holder:
                raise InputError(f"{call}: {self._holder} of this model is not over; wait until it has returned")
            self._holder, self._callback_error = call, None
            try:
                yield
            except Exception as error:
                if error is not self._callback_error:
                    self.check_open()
                raise
            finally:
                self._holder = ""
            self.check_open()

    def call_back(self, function: Callable[..., Any], *arguments: Any) -> None:
        """Calls what the user gave: its exceptions are passed on as they are, also if it has closed the model."""
        try:
            function(*arguments)
        except BaseException as error:
            self._callback_error = error
            raise
        self.check_open()
