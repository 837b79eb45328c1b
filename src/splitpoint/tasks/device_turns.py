"""The device's engine, which one request at a time may use: it is given back when the request's head has run.

    dispatcher: take ──► a request's thread: lend ──► its session runs the head ──► give_back ──► the next `take`

The dispatcher decides the order: it takes the device and starts a thread for the request, which calls `lend`. The first
run of a session in that thread gives the device back, so the next head computes while this request's tensors are sent.
Runs in threads that were lent nothing (the rest of a model, where the server is late) do not wait for the device.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping

from splitpoint.engines import Engine, Session
from splitpoint.models.model import Segment
from splitpoint.tensors import Array


class SharedDevice:
    """An engine (`splitpoint.engines`) around another one, which is lent to one thread at a time."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.name, self.device, self.threads = engine.name, engine.device, engine.threads
        self._free = threading.Semaphore(1)
        self._holder = threading.local()

    def take(self) -> None:
        """Waits until the device is free, and takes it for the thread that `lend` will be called in."""
        self._free.acquire()

    def lend(self, then: Callable[[], None]) -> None:
        """Lends what was taken to the calling thread, whose next run of a session gives it back and calls `then`."""
        self._holder.then = then

    def give_back(self) -> None:
        """Frees the device, if it was lent to the calling thread and not given back yet."""
        then = getattr(self._holder, "then", None)
        if then is not None:
            self._holder.then = None
            self._free.release()
            then()

    def drop(self) -> None:
        """Frees the device that was taken and will not be lent."""
        self._free.release()

    def compile(self, segment: Segment) -> _Borrowed:
        """A session that gives the device back when it has run."""
        return _Borrowed(self.engine.compile(segment), self)


class _Borrowed:
    """A session whose run gives the device back."""

    def __init__(self, session: Session, device: SharedDevice) -> None:
        self.inputs, self.outputs, self.nbytes = session.inputs, session.outputs, session.nbytes
        self._session, self._device = session, device

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        try:
            return self._session.run(inputs)
        finally:
            self._device.give_back()

    def close(self) -> None:
        self._session.close()
