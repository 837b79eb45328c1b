"""Measuring beside requests, with what they leave of the processor.

On Linux the thread that measures steps back (and those that it starts, such as an engine's): it is of the class
SCHED_IDLE, which gives up its core at once to whoever wakes up there, has a few thousandths of one that somebody wants
all the time, and all of one that nobody does. A low priority (nice 19) is not enough: a kernel from 6.6 on lets whoever
computes end its slice of 3 ms before it gives way, and a request wakes up several times. While requests come it also
rests, so that it works for a tenth of the time at most, which is all there is on other systems. However little there is
left, it comes to an end (`longest_s`).

What a thread waited for a core is no part of what a run takes: the clock leaves it out.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from math import inf
from time import perf_counter
from typing import TypeVar

from splitpoint.trace import Clock

#: Beside requests each second of work is followed by so many of rest.
_REST = 9.0
#: The lowest priority there is (setpriority(2)), where there is no SCHED_IDLE.
_NICEST = 19
#: A survey may take so many times what it works, and so many seconds to begin with.
_PATIENCE, _BEGINS_S = 12.0, 300.0

T = TypeVar("T")


class Enough(Exception):
    """Nobody waits for more: what was measured by then is the result."""


class Spare:
    """For the thread that enters it, which ends soon after it leaves: its priority stays low.

    `requests` counts those that were begun or ended so far. Once `closed` is set, each use raises Enough.
    """

    def __init__(self, requests: Callable[[], int], closed: threading.Event, now: Clock = perf_counter) -> None:
        self._requests, self._closed, self._now = requests, closed, now
        self._rested_s = self._worked_s = 0.0
        self._waits = -1
        self._until = inf
        self._seen, self._since = requests(), now()

    def __enter__(self) -> Spare:
        if sys.platform == "linux":  # elsewhere it would be the whole process
            with suppress(OSError):
                os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICEST)
            with suppress(OSError):
                os.sched_setscheduler(threading.get_native_id(), os.SCHED_IDLE, os.sched_param(0))
            with suppress(OSError):
                self._waits = os.open("/proc/thread-self/schedstat", os.O_RDONLY | os.O_CLOEXEC)
        return self

    def __exit__(self, *_: object) -> None:
        if self._waits >= 0:
            os.close(self._waits)
            self._waits = -1

    @property
    def over(self) -> bool:
        """Whether nobody waits for more."""
        return self._closed.is_set() or self._now() >= self._until

    def begin(self, budget_s: float) -> None:
        """Work of `budget_s` seconds begins: however little requests leave, it is over after `longest_s` of that."""
        self._until = self._now() + longest_s(budget_s)

    def clock(self) -> float:
        """Seconds that were worked: not those of rest, nor those for which the thread waited for a core. Never goes
        back."""
        before_s, now_s = -1.0, 0.0
        while (waited_s := self._waited_s()) != before_s:  # it lost its core between the two readings
            before_s, now_s = waited_s, self._now()
        self._worked_s = max(self._worked_s, now_s - self._rested_s - waited_s)
        return self._worked_s

    def proceed(self) -> None:
        """Before each step: rests if requests came during the last one."""
        if self._requests() != self._seen:
            began_s = self._now()
            self.pause(_REST * (self.clock() - self._since))
            self._rested_s += self._now() - began_s
        elif self.over:
            raise Enough
        self._seen, self._since = self._requests(), self.clock()

    def pause(self, seconds: float) -> None:
        """Waits so long."""
        if self._closed.wait(seconds) or self.over:
            raise Enough

    def _waited_s(self) -> float:
        """How long this thread was ready to run and had no core (Documentation/scheduler/sched-stats.rst)."""
        if self._waits < 0:
            return 0.0
        try:
            return int(os.pread(self._waits, 64, 0).split()[1]) * 1e-9
        except (OSError, ValueError, IndexError):  # a kernel without it
            return 0.0


def longest_s(budget_s: float) -> float:
    """How long work of `budget_s` seconds may take beside requests.

    >>> longest_s(10.0)
    420.0
    """
    return _BEGINS_S + _PATIENCE * budget_s


def aside(work: Callable[[Spare], T], spare: Spare) -> T:
    """What `work` returns or raises, in a thread of its own that enters `spare`: the caller's priority stays."""
    outcome: Future[T] = Future()

    def run() -> None:
        try:
            with spare:
                outcome.set_result(work(spare))
        except BaseException as exc:
            outcome.set_exception(exc)

    thread = threading.Thread(target=run, name="profile", daemon=True)
    thread.start()
    thread.join()
    return outcome.result()
