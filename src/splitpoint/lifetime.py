"""What holds connections, threads or compiled models: how it ends, and what becomes of it when the process forks.

A forked process has its parent's sockets, but none of its threads. If both used a connection, one of them would read
the other's answers; and a lock that another thread held at that moment is never released. So whatever was made before a
fork stays the parent's: in the child every use of it is an error, and the child only closes its copies of the sockets,
which the parent does not notice.
"""

from __future__ import annotations

import atexit
import os
import sys
import threading
import warnings
from contextlib import suppress
from typing import NoReturn, Protocol, TypeVar
from weakref import WeakSet

from splitpoint.errors import ServerError, SplitpointError, UsageError


class Forks(Protocol):
    """What is told, in the child, that the process has forked. No lock may be taken then."""

    def forked(self) -> None: ...


C = TypeVar("C", bound="Closable")
_watched: WeakSet[Forks] = WeakSet()
_open: WeakSet[Closable] = WeakSet()


def watch(thing: Forks) -> None:
    """Has `thing` told of forks, as long as it lives."""
    _watched.add(thing)


def foreign(what: str) -> UsageError:
    """The error for `what`, which was made before the process forked."""
    return UsageError(f"this {what} was made before the process forked: make one in each process, after the fork")


class Closable:
    """Base of what a user makes, uses and closes.

    A subclass calls `_opened` as soon as there is something to close, says in `_end` how that is done, and has every
    use begin with `check`.
    """

    _over: SplitpointError | None = None
    """Why it is of no more use: closed, or the process has forked."""
    _closing: threading.Lock | None = None

    def _opened(self, *, at_exit: bool = False) -> None:
        """From now on there is something to close; `at_exit`: also before the interpreter is taken apart."""
        self._closing = threading.Lock()
        watch(self)
        if at_exit:
            _open.add(self)

    def check(self) -> None:
        """ServerError if it is closed, UsageError if the process has forked since it was made."""
        if self._over is not None:
            raise type(self._over)(str(self._over))

    def __enter__(self: C) -> C:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _closed_error(self) -> SplitpointError:
        return ServerError(f"this {type(self).__name__} is closed")

    def _end(self) -> None:
        """Ends what it holds. Called once."""

    def close(self) -> None:
        """Ends it, and every use of it that is under way. The second time it does nothing."""
        if self._over is not None:
            return
        if self._closing is not None:
            with self._closing:
                if self._over is not None:
                    return
                self._over = self._closed_error()
        _open.discard(self)
        self._end()

    def forked(self) -> None:
        self._over = foreign(type(self).__name__)

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        name = type(self).__name__
        raise UsageError(
            f"{'an' if name[0] in 'AEIOU' else 'a'} {name} cannot be pickled or copied: its connections and threads "
            "belong to this process. Make one in each process (multiprocessing: in the worker's own function or "
            "initializer)"
        )

    def __del__(self) -> None:
        if self._closing is None or self._over is not None or sys.is_finalizing():
            return
        self._over = self._closed_error()
        # In a thread of its own: whoever happens to collect garbage may hold the very locks that ending takes.
        with suppress(RuntimeError):  # no thread can be had any more
            threading.Thread(target=self._end, name="end of what was forgotten", daemon=True).start()
        name = type(self).__name__
        warnings.warn(
            f"unclosed {name}: call close(), or use it in a with statement", ResourceWarning, stacklevel=2, source=self
        )


def _forked() -> None:
    for thing in list(_watched):
        thing.forked()
    _watched.clear()
    _open.clear()


def _close_all() -> None:
    for one in list(_open):
        one.close()


os.register_at_fork(after_in_child=_forked)
atexit.register(_close_all)
