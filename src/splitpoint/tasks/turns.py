"""Whose turn it is, on the device and on the link.

    dispatcher: take ──► a request's thread: lend ──► its session runs the head ──► give_back ──► the next `take`
                                                                                        └──► enter ──► its connection

The dispatcher decides the order: it takes the device and starts a thread for the request, which calls `lend`. The first
run of a session in that thread gives the device back, so the next head computes while this request's tensors are sent.
Runs in threads that were lent nothing (the rest of a model, where the server is late) do not wait for the device.

Requests are handed to their connections in the order in which the device began them. Every model has a connection of
its own, and connections share a link evenly: of two requests that are sent together both arrive when the second one
could have, and the server has nothing to do meanwhile. So a request is handed over when the one before should have
left, a little earlier, so that the link is never idle. The bandwidth is asked for again while a request waits: a rate
that was believed for a moment must not hold up a queue for seconds.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from time import perf_counter

from splitpoint.engines import Engine, Session
from splitpoint.models.model import Segment
from splitpoint.tensors import Array

#: How much earlier, as a share of the time that the one before takes: the bandwidth is not known better.
EARLY = 0.1
#: How often a request that waits asks for the bandwidth again, seconds.
_LOOK_S = 0.02


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


class UplinkOrder:
    """The order of uploads. `up_s` says how many seconds so many bytes take, as of now; `clock` is in seconds. Any
    thread may wait."""

    def __init__(self, up_s: Callable[[float], float], clock: Callable[[], float] = perf_counter) -> None:
        self._up_s, self._now = up_s, clock
        self._turn = threading.Condition()
        self._tickets = self._next = 0
        self._passed: set[int] = set()
        self._sent: list[tuple[float, float]] = []  # when, and how many bytes, of what may still be on its way
        self._last: object = None

    def ticket(self) -> int:
        """A place behind all that have one."""
        with self._turn:
            self._tickets += 1
            return self._tickets - 1

    def enter(self, ticket: int, connection: object, nbytes: float) -> None:
        """Returns when a request of so many bytes should be handed to its connection."""
        with self._turn:
            self._turn.wait_for(lambda: self._next >= ticket)
            while (left := self._left_s()) > 0 and connection is not self._last:
                self._turn.wait(min(left, _LOOK_S))
            self._sent.append((self._now(), nbytes))
            self._last = connection
            self._pass(ticket)

    def leave(self, ticket: int) -> None:
        """The request will not enter, or has: nobody waits for it."""
        with self._turn:
            self._pass(ticket)

    def _left_s(self) -> float:
        """Until the next one may leave, if another connection sent the last one."""
        now = self._now()
        free, took = 0.0, 0.0
        for at, nbytes in self._sent:
            took = self._up_s(nbytes)
            free = max(free, at) + took
        if free <= now:
            self._sent.clear()
        return free - EARLY * took - now

    def _pass(self, ticket: int) -> None:
        if ticket >= self._next:
            self._passed.add(ticket)
        while self._next in self._passed:
            self._passed.remove(self._next)
            self._next += 1
        self._turn.notify_all()
