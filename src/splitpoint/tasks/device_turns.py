"""The device's compute as one thing that requests take in turns: an engine that is given back when a head has run.

Whoever decides about the order takes it (`take`) and passes it to the thread of a request (`lend`). That thread's first
run of a session gives it back, so that the next head computes while this request's tensors are on their way. Runs of
threads that hold nothing (a tail that is finished here because the server is late) wait for nobody.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping

from splitpoint.engines import Engine, Session
from splitpoint.models.model import Segment
from splitpoint.tensors import Array


class SharedDevice:
    """An engine (splitpoint.engines) around another one."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.name, self.device, self.threads = engine.name, engine.device, engine.threads
        self._free = threading.Semaphore(1)
        self._holder = threading.local()

    def take(self) -> None:
        """Waits until the device is free, and takes it."""
        self._free.acquire()

    def lend(self, then: Callable[[], None]) -> None:
        """It is the calling thread's now: what it runs next gives it back, and then does `then`."""
        self._holder.then = then

    def give_back(self) -> None:
        """The next one may have it, if the calling thread held it."""
        then = getattr(self._holder, "then", None)
        if then is not None:
            self._holder.then = None
            self._free.release()
            then()

    def drop(self) -> None:
        """Gives back what was taken and not lent."""
        self._free.release()

    def compile(self, segment: Segment) -> _Borrowed:
        """A session that gives the device back when it has run."""
        return _Borrowed(self.engine.compile(segment), self)


class _Borrowed:
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
