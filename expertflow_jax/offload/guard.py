"""Who may call the engine: one thread within a step, nobody once it is closed, no generator of a layer-step gone by.

The engine serves one step at a time. What two threads would do to each other (slots given away under a computation) is
hard to recognise later, so the second one is told at its first call. Whoever shares a model between threads puts a lock
around whole requests; without an open step any thread may come.
"""

import threading


class Guard:
    """State under the engine's lock.

    Attributes:
      closed: the engine has been closed.
      serial: of the layer-step that runs; each one that begins or ends makes it grow.
    """

    def __init__(self) -> None:
        self.closed = False
        self.serial = 0
        self._owner: threading.Thread | None = None  # in the middle of a step
        self._ident: int | None = None

    def enter(self) -> None:
        """A call that changes something.

        Raises:
          RuntimeError: the engine is closed, or another thread that still runs is in the middle of a step.
        """
        if self.closed:
            raise RuntimeError("the engine is closed; make a new one")
        if self._owner is not None and self._ident != threading.get_ident() and self._owner.is_alive():
            raise RuntimeError(
                f"the engine serves one thread at a time: thread {threading.current_thread().name!r} calls in the "
                f"middle of a step of thread {self._owner.name!r}; put a lock around the model, or give each thread "
                "a model of its own"
            )

    def begin_step(self) -> None:
        """The calling thread owns the engine until its step ends."""
        self._owner, self._ident = threading.current_thread(), threading.get_ident()

    def end_step(self) -> None:
        self._owner = self._ident = None

    def next_layer(self) -> None:
        """A layer-step begins or ends: what is left of the one before has no say any more."""
        self.serial += 1

    def check(self, serial: int) -> None:
        """
        Raises:
          RuntimeError: the layer-step of this serial is not the one that runs.
        """
        if serial != self.serial:
            raise RuntimeError(
                "these rounds belong to a layer-step that another one has ended; finish a layer's rounds, "
                "or give them up, before the next layer or step begins"
            )
