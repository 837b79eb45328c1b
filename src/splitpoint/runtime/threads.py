"""Threads that live as long as their server or edge: what goes wrong in one is told, and does not end it.

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


def persist(step: Callable[[], object], what: str, tell: OnEvent, wait: Callable[[float], object]) -> None:
    """Calls `step` until it returns False. What it raises is told as the failure of `what`, once for the same reason in
    a row, and it is called again after a pause, which is made with `wait`.
    """
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
