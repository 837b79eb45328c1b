"""Whose turn it is on the link up: requests leave in the order in which the device began them.

Every model has a connection of its own, and connections share a link evenly: two requests that leave together both
arrive when the second one could have, and the server waits meanwhile. So the next one is handed over when the one
before should have left, by its bytes and the bandwidth; a little earlier, as the link must not wait for anybody.
Requests of one connection follow each other in any case.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from time import perf_counter

#: How much earlier, as a share of the time that the one before takes: the bandwidth is not known better.
EARLY = 0.1


class Lane:
    """The order of uploads. Any thread may wait; `clock` is in seconds."""

    def __init__(self, clock: Callable[[], float] = perf_counter) -> None:
        self._now = clock
        self._turn = threading.Condition()
        self._tickets = self._next = 0
        self._passed: set[int] = set()
        self._free = self._early = 0.0
        self._last: object = None

    def ticket(self) -> int:
        """A place behind all that have one."""
        with self._turn:
            self._tickets += 1
            return self._tickets - 1

    def enter(self, ticket: int, connection: object, seconds: float) -> None:
        """Returns when a request that takes `seconds` should be handed to its connection."""
        with self._turn:
            self._turn.wait_for(lambda: self._next >= ticket)
            while connection is not self._last and (left := self._free - self._early - self._now()) > 0:
                self._turn.wait(left)
            self._free = max(self._free, self._now()) + seconds
            self._early, self._last = EARLY * seconds, connection
            self._pass(ticket)

    def leave(self, ticket: int) -> None:
        """The request will not enter, or has: nobody waits for it."""
        with self._turn:
            self._pass(ticket)

    def _pass(self, ticket: int) -> None:
        if ticket >= self._next:
            self._passed.add(ticket)
        while self._next in self._passed:
            self._passed.remove(self._next)
            self._next += 1
        self._turn.notify_all()
