"""Measuring beside requests, with what they leave of the processor.

On Linux the thread that measures steps back: the scheduler gives it (and the threads that it starts, such as an
engine's) one or two hundredths of a core that anybody else wants, and all of one that nobody does. While requests come
it also rests, so that it works for a quarter of the time at most, which is all there is on other systems.

What a thread waited for a core is no part of what a run takes: the clock leaves it out.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from time import perf_counter

from splitpoint.trace import Clock

#: Beside requests each second of work is followed by so many of rest.
_REST = 3.0
#: The lowest priority there is (setpriority(2)).
_NICEST = 19


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
        self._seen, self._since = requests(), now()

    def __enter__(self) -> Spare:
        if sys.platform == "linux":  # elsewhere it would be the whole process
            with suppress(OSError):
                os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICEST)
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
        return self._closed.is_set()

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
            self.pause(_REST * (began_s - self._since))
            self._rested_s += self._now() - began_s
        elif self.over:
            raise Enough
        self._seen, self._since = self._requests(), self._now()

    def pause(self, seconds: float) -> None:
        """Waits so long."""
        if self._closed.wait(seconds):
            raise Enough

    def _waited_s(self) -> float:
        """How long this thread was ready to run and had no core (Documentation/scheduler/sched-stats.rst)."""
        if self._waits < 0:
            return 0.0
        try:
            return int(os.pread(self._waits, 64, 0).split()[1]) * 1e-9
        except (OSError, ValueError, IndexError):  # a kernel without it
            return 0.0
