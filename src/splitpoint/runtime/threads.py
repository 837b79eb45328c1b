"""Threads: those that live as long as their server or edge (`persist`), and those for work that takes long (`Jobs`).

Python prints a traceback when a thread dies, and goes on without it: a server that accepts nobody, a line that is not
made again. So every thread of ours that works in a loop runs `persist`, but those whose end somebody waits for and
hears of (a reader's is the end of its connection, a pipeline's step raises where its result is taken).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from time import monotonic

from splitpoint.errors import ServerError
from splitpoint.runtime.events import Event, OnEvent

#: The first pause after a failure, doubled up to the longest while every step fails.
_PAUSE_S, _LONGEST_S = 0.01, 1.0
#: How long closing waits for a job that is being done.
_JOIN_S = 10.0


def persist(step: Callable[[], object], what: str, tell: OnEvent, wait: Callable[[float], object]) -> None:
    """Calls `step` until it returns False. What it raises is told as the failure of `what`, once for the same reason in
    a row, and does not end it: it is called again after a pause, which is made with `wait`."""
    said, pause_s = "", _PAUSE_S
    while True:
        try:
            if step() is False:
                return
            said, pause_s = "", _PAUSE_S
        except Exception as exc:
            why = repr(exc)
            if why != said:
                with suppress(Exception):
                    tell(Event("failed", f"{what} failed and goes on: {why[:1000]}"))
            said = why
            wait(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_S)


def begin(thread: threading.Thread) -> None:
    """Starts `thread`. ServerError if the system has none left."""
    try:
        thread.start()
    except RuntimeError as exc:
        raise ServerError(
            "this process may start no more threads: end some, or raise its limit (ulimit -u, a container's pids)"
        ) from exc


def join(threads: Iterable[threading.Thread], within_s: float) -> bool:
    """Waits for all of `threads` to end, `within_s` altogether. Whether they have: a native run may never."""
    end_s = monotonic() + within_s
    waiting = list(threads)
    for thread in waiting:
        thread.join(max(0.0, end_s - monotonic()))
    return not any(thread.is_alive() for thread in waiting)


class Jobs:
    """One job after the other, each in a thread of its own. What one raises is told to `tell`, as long as it is not
    closed.

    >>> jobs, done = Jobs(print), threading.Event()
    >>> jobs.add(done.set)
    >>> done.wait(10)
    True
    >>> jobs.close()
    """

    def __init__(self, tell: OnEvent) -> None:
        self._tell = tell
        self._lock = threading.Lock()
        self._last: threading.Thread | None = None
        self.closed = threading.Event()
        """Set when no more is begun: what takes long looks at it."""

    @property
    def mine(self) -> bool:
        """Whether this thread is doing the last job."""
        return threading.current_thread() is self._last

    def add(self, work: Callable[[], None]) -> None:
        """Does `work` after what is being done."""
        if self.closed.is_set():
            return
        with self._lock:
            before = self._last

            def run() -> None:
                if before is not None:
                    before.join()
                if self.closed.is_set():
                    return
                try:
                    work()
                except Exception as exc:  # an engine's, too
                    if not self.closed.is_set():
                        self._tell(Event("notice", str(exc)))

            thread = threading.Thread(target=run, name="beside", daemon=True)
            thread.start()
            self._last = thread  # not before: it may be joined

    def close(self) -> None:
        """Begins no more, and waits a while for what is being done."""
        self.closed.set()
        if self._last is not None and not self.mine:
            self._last.join(_JOIN_S)
