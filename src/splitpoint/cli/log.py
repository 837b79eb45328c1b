"""A server's log: a thread of its own writes the lines, so that no request waits for a slow reader or fails with it."""

from __future__ import annotations

import sys
import threading
from collections import deque
from types import TracebackType

import click

from splitpoint.cli.stdio import ReaderGone, silence
from splitpoint.errors import SplitpointError
from splitpoint.units import counted

#: Lines that wait for a reader that does not read (a stopped pager, a pipe that is full); the oldest are then lost.
_HELD = 1000
#: How long the last lines may take.
_LAST_S = 1.0


class Log:
    """Lines for standard output and error, written by a thread of its own."""

    def __init__(self) -> None:
        self._lines: deque[tuple[str, bool]] = deque()
        self._lost = 0
        self._ended = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._write, name="log", daemon=True)

    def __enter__(self) -> Log:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Waits a moment for what is not written yet."""
        with self._changed:
            self._ended = True
            self._changed.notify()
        self._thread.join(_LAST_S)
        if self._thread.is_alive():  # nobody reads: the process must end all the same
            for stream in (sys.stdout, sys.stderr):
                silence(stream.fileno())

    def say(self, text: str, *, err: bool = False) -> None:
        """One more line; from any thread, at once."""
        with self._changed:
            if len(self._lines) >= _HELD:
                self._lines.popleft()
                self._lost += 1
            self._lines.append((text, err))
            self._changed.notify()

    def _write(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._lines or self._ended)
                if not self._lines:
                    return
                (text, err), lost = self._lines.popleft(), self._lost
                self._lost = 0
            if lost:
                self._echo(f"{counted(lost, 'line')} of this log were lost: it was not read", err)
            self._echo(text, err)

    def _echo(self, text: str, err: bool) -> None:
        try:
            click.echo(text, err=err)
        except ReaderGone:  # from now on it goes nowhere
            click.echo("splitpoint: nobody reads the log on standard output any more; serving goes on", err=True)
        except (SplitpointError, OSError, ValueError) as exc:
            click.echo(f"splitpoint: {exc}; serving goes on", err=True)
