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

#: How soon an interrupt that got lost is raised again, and one that has to wait for an import.
_AGAIN_S, _IMPORT_S = 0.3, 0.02
#: How long the main thread may take to hear a signal, and how long where another one says that somebody is impatient;
#: how often that is looked at meanwhile; by how much whoever looks may learn later of a signal than who heard it.
_STUCK_S, _IMPATIENT_S, _LOOK_S, _LATER_S = 2.0, 1.0, 0.05, 0.2
_WATCHER = "signals"
#: The signal that has interrupted what is at work; 0 before one has.
came = 0
HANDLED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Terminated(KeyboardInterrupt):
    """SIGTERM or SIGHUP: whoever stops for Ctrl-C stops for them."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


def number_of(exc: KeyboardInterrupt) -> int:
    """The signal that raised it."""
    return exc.number if isinstance(exc, Terminated) else signal.SIGINT


def status_of(exc: KeyboardInterrupt) -> tuple[str, int]:
    """What to say of it, and the exit status."""
    return said(number_of(exc))


def said(number: int) -> tuple[str, int]:
    """The same for a signal."""
    return "interrupted" if number == signal.SIGINT else "terminated", 128 + number


def raised(number: int) -> KeyboardInterrupt:
    """What a signal raises."""
    return KeyboardInterrupt() if number == signal.SIGINT else Terminated(number)


def at_once(number: int, _: FrameType | None) -> None:
    """The handler while nothing is to be cleared up."""
    word, status = said(number)
    # Not through a stream that this thread may be in the middle of.
    with suppress(OSError):
        os.write(2, f"splitpoint: {word}\n".encode())
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
    """Whether an extension module is being imported: one that is made and not filled may crash when it is freed (the
    one of onnx 1.23 does)."""
    while frame is not None:
        if frame.f_code.co_name == "_load_unlocked":
            loader = getattr(frame.f_locals.get("spec"), "loader", None)
            if type(loader).__name__ == "ExtensionFileLoader":
                return True
        frame = frame.f_back
    return False


def _once_more(_: int, frame: FrameType | None) -> None:
    """Raises an interrupt again that somebody else's code has swallowed; not while it is on its way to `main`."""
    exc = sys.exc_info()[1]
    while exc is not None and not isinstance(exc, KeyboardInterrupt):
        exc = exc.__context__
    if exc is None:
        interrupt(came, frame)
        return
    signal.setitimer(signal.ITIMER_REAL, _AGAIN_S)


def _watch(pipe: int) -> None:
    """Hears of every signal, by what the interpreter writes to `pipe` at once, wherever its threads are.

    The main thread hears of it when it runs Python again; native code that does not end (a model's endless loop) does
    not let it. Then nothing can be cleared up, and nobody else would end the process.
    """
    stuck, since_s, limit_s = 0, 0.0, _STUCK_S
    coming = select.poll()
    coming.register(pipe, select.POLLIN)
    while True:
        if stuck and Hears.last_s >= since_s - _LATER_S:
            stuck = 0
        if stuck and monotonic() >= since_s + limit_s:
            _end_by_force(stuck)
        if not coming.poll(_LOOK_S * 1e3 if stuck else None):
            continue
        for number in os.read(pipe, 64):
            if number in HANDLED and isinstance(signal.getsignal(number), Hears):
                if stuck:  # the main thread may be about to hear both
                    limit_s = _IMPATIENT_S
                else:
                    stuck, since_s, limit_s = number, monotonic(), _STUCK_S


def _end_by_force(number: int) -> NoReturn:
    word, status = said(number)
    with suppress(OSError):
        os.write(2, f"splitpoint: {word}, by force: what was being computed did not let itself be stopped\n".encode())
    os._exit(status)


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
    """Hears the signals that nobody has said anything about: what is ignored (nohup, a script's `&`) stays ignored."""
    for number in HANDLED:
        if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
            signal.signal(number, at_once)
    sys.unraisablehook = _unraisable


def begin() -> None:
    """From now on there may be something to clear up."""
    for number in HANDLED:
        if signal.getsignal(number) is at_once:
            signal.signal(number, interrupt)
    hearing = any(signal.getsignal(number) is interrupt for number in HANDLED)
    if hearing and not any(t.name == _WATCHER for t in threading.enumerate()):
        _begin_to_watch()


def finish() -> None:
    """All is cleared up."""
    if came:
        signal.setitimer(signal.ITIMER_REAL, 0)
    for number in HANDLED:
        if callable(handler := signal.getsignal(number)) and handler is not signal.default_int_handler:
            signal.signal(number, at_once)


def leave(status: int) -> None:
    """Ends the process, if a signal has interrupted it: where a thread is still in native code, taking the interpreter
    apart would make that crash."""
    if status - 128 in HANDLED:
        for stream in (sys.stdout, sys.stderr):
            with suppress(Exception):
                stream.flush()
        os._exit(status)


def _unraisable(raised: Any) -> None:
    """An interrupt where Python can only print it (a finaliser, a callback of C code) will be raised again."""
    if not isinstance(raised.exc_value, KeyboardInterrupt):
        sys.__unraisablehook__(raised)
