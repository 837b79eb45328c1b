"""Ctrl-C, SIGTERM and SIGHUP, at whatever moment they come: one word, the right exit status, and no traceback.

starting   nothing is to be cleared up: it ends at once
at work    KeyboardInterrupt (`Terminated` is one), so that whatever is under way is cleared up; a second one again
stuck      in native code, where Python hears nothing: it ends by force, after a few seconds or at the second signal
ending     all is cleared up: it ends at once
"""

from __future__ import annotations

import os
import select
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from time import monotonic
from types import FrameType
from typing import Any, NoReturn

#: After how long an interrupt is raised again that other code has swallowed, or that came during an import.
_AGAIN_S, _IMPORT_S = 0.3, 0.02
#: How long the main thread may take to handle a signal before the process is ended by force; how long if a second
#: signal has come; how often the watching thread looks; how much later than the handler it may see a signal.
_STUCK_S, _IMPATIENT_S, _LOOK_S, _LATER_S = 2.0, 1.0, 0.05, 0.2
_WATCHER = "signals"
#: The signal that has interrupted what is at work; 0 before one has.
came = 0
HANDLED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Terminated(KeyboardInterrupt):
    """SIGTERM or SIGHUP. What handles Ctrl-C handles it, too."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


def number_of(exc: KeyboardInterrupt) -> int:
    """The number of the signal that raised `exc`."""
    return exc.number if isinstance(exc, Terminated) else signal.SIGINT


def said(number: int) -> tuple[str, int]:
    """The word for a signal, and the exit status."""
    return "interrupted" if number == signal.SIGINT else "terminated", 128 + number


def raised(number: int) -> KeyboardInterrupt:
    """The exception that stands for a signal."""
    return KeyboardInterrupt() if number == signal.SIGINT else Terminated(number)


def at_once(number: int, _: FrameType | None) -> None:
    """The handler while nothing is to be cleared up."""
    _end(number)


def _end(number: int, more: str = "") -> NoReturn:
    word, status = said(number)
    # Not through a stream that this thread may be in the middle of.
    with suppress(OSError):
        os.write(2, f"splitpoint: {word}{more}\n".encode())
    os._exit(status)


class Hears:
    """A handler of the main thread that does not let it be stuck: where it is not called, `_watch` ends all."""

    last_s = float("-inf")

    def __init__(self, handle: Callable[[int, FrameType | None], None]) -> None:
        self._handle = handle

    def __call__(self, number: int, frame: FrameType | None) -> None:
        Hears.last_s = monotonic()
        self._handle(number, frame)


@Hears
def interrupt(number: int, frame: FrameType | None) -> None:
    """The handler at work."""
    global came
    came = number
    signal.signal(signal.SIGALRM, _once_more)
    if _is_half_imported(frame):
        signal.setitimer(signal.ITIMER_REAL, _IMPORT_S)
        return
    signal.setitimer(signal.ITIMER_REAL, _AGAIN_S)
    raise raised(number)


def _is_half_imported(frame: FrameType | None) -> bool:
    """Whether an extension module is being imported. One that was created and not initialised may crash when it is
    freed (that of onnx 1.23 does)."""
    while frame is not None:
        if frame.f_code.co_name == "_load_unlocked":
            loader = getattr(frame.f_locals.get("spec"), "loader", None)
            if type(loader).__name__ == "ExtensionFileLoader":
                return True
        frame = frame.f_back
    return False


def _once_more(_: int, frame: FrameType | None) -> None:
    """Raises an interrupt again that other code has swallowed, unless it is still being handled."""
    exc = sys.exc_info()[1]
    while exc is not None and not isinstance(exc, KeyboardInterrupt):
        exc = exc.__context__
    if exc is None:
        interrupt(came, frame)
        return
    signal.setitimer(signal.ITIMER_REAL, _AGAIN_S)


def _watch(pipe: int) -> None:
    """Ends the process by force if the main thread does not handle a signal in time.

    The interpreter writes each signal to `pipe` at once. Python's handlers run in the main thread, and not before it is
    back from native code, which may never end (a model's endless loop). Nothing can be cleared up then.
    """
    stuck, since_s, limit_s = 0, 0.0, _STUCK_S
    coming = select.poll()
    coming.register(pipe, select.POLLIN)
    while True:
        if stuck and Hears.last_s >= since_s - _LATER_S:
            stuck = 0
        if stuck and monotonic() >= since_s + limit_s:
            _end(stuck, ", by force: what was being computed did not let itself be stopped")
        if not coming.poll(_LOOK_S * 1e3 if stuck else None):
            continue
        for number in os.read(pipe, 64):
            if number in HANDLED and isinstance(signal.getsignal(number), Hears):
                if stuck:  # the main thread may be about to hear both
                    limit_s = _IMPATIENT_S
                else:
                    stuck, since_s, limit_s = number, monotonic(), _STUCK_S


def _begin_to_watch() -> None:
    ours, theirs = os.pipe()
    os.set_blocking(theirs, False)
    try:
        threading.Thread(target=_watch, args=(ours,), name=_WATCHER, daemon=True).start()
    except RuntimeError:  # no thread left: then a second Ctrl-C is all there is
        os.close(ours)
        os.close(theirs)
        return
    signal.set_wakeup_fd(theirs, warn_on_full_buffer=False)


def install() -> None:
    """Handles the signals that still have Python's own handlers: one that is ignored (nohup, a script's `&`) stays
    ignored."""
    for number in HANDLED:
        if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
            signal.signal(number, at_once)
    sys.unraisablehook = _unraisable


def begin() -> None:
    """From now on a signal raises an exception, because there may be something to clear up."""
    for number in HANDLED:
        if signal.getsignal(number) is at_once:
            signal.signal(number, interrupt)
    hearing = any(signal.getsignal(number) is interrupt for number in HANDLED)
    if hearing and not any(t.name == _WATCHER for t in threading.enumerate()):
        _begin_to_watch()


def finish() -> None:
    """From now on a signal ends the process at once: all is cleared up."""
    if came:
        signal.setitimer(signal.ITIMER_REAL, 0)
    for number in HANDLED:
        if callable(handler := signal.getsignal(number)) and handler is not signal.default_int_handler:
            signal.signal(number, at_once)


def leave(status: int) -> None:
    """Ends the process if a signal has interrupted it. Python's own way out would crash a thread that is in native
    code."""
    if status - 128 in HANDLED:
        for stream in (sys.stdout, sys.stderr):
            with suppress(Exception):
                stream.flush()
        os._exit(status)


def _unraisable(unraisable: Any) -> None:
    """Prints what could not be raised (in a finaliser, a callback of C code), but for interrupts: `_once_more` raises
    them again."""
    if not isinstance(unraisable.exc_value, KeyboardInterrupt):
        sys.__unraisablehook__(unraisable)
