"""The guard around callbacks that a user gave: `on_event`, `on_progress`, watchers, the log.

A callback that raises (a full disk, a closed notebook, a mistake in it) must cost no request, no connection and no
thread: every call of one goes through `guard`. What it raised is reported once, as a warning and to the logger
``splitpoint``, which is silent until the program that uses the library gives it a handler.
"""

from __future__ import annotations

import logging
import threading
import warnings
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import ParamSpec

P = ParamSpec("P")

#: All that the library has to say.
log = logging.getLogger("splitpoint")
log.addHandler(logging.NullHandler())

#: (callback, what it raised) that were reported.
_reported: set[tuple[str, type[BaseException]]] = set()


class guard:
    """Inside a ``with`` of it `name` is told something: what that raises is reported, and goes no further.

    KeyboardInterrupt, SystemExit and their kin pass in the main thread, where they end the program as they should.
    Elsewhere they would only end a thread that others need.
    """

    def __init__(self, name: str) -> None:
        self._name = name

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, _: TracebackType | None) -> bool:
        if exc is None:
            return False
        if not isinstance(exc, Exception) and threading.current_thread() is threading.main_thread():
            return False
        report(self._name, exc)
        return True


def call(callback: Callable[P, object], /, *args: P.args, **kwargs: P.kwargs) -> None:
    """Calls `callback` under its `guard`."""
    with guard(getattr(callback, "__qualname__", type(callback).__qualname__)):
        callback(*args, **kwargs)


def report(name: str, exc: BaseException) -> None:
    """Says, once for a `name` and kind of error, that `exc` came from it."""
    if (name, type(exc)) in _reported:
        return
    _reported.add((name, type(exc)))
    text = f"{name} raised {exc!r}: it was only told something, so work goes on"
    # The log may be what is broken, and a warning may be made an error.
    with suppress(Exception):
        log.error(text, exc_info=exc)
    with suppress(Exception):
        warnings.warn(text, RuntimeWarning, stacklevel=4)
