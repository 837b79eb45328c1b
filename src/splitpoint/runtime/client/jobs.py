"""Work that takes long and that nobody waits for: one job after the other, each in a thread of its own."""

from __future__ import annotations

import threading
from collections.abc import Callable

from splitpoint.runtime.events import Event, OnEvent

#: How long closing waits for what is being done.
_JOIN_S = 10.0


class Jobs:
    """What a job raises is told to `tell`, as long as it is not closed.

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

    def stop(self) -> None:
        """Begins no more."""
        self.closed.set()

    def close(self) -> None:
        """Begins no more, and waits a while for what is being done."""
        self.stop()
        if self._last is not None and not self.mine:
            self._last.join(_JOIN_S)
