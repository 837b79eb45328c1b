"""Standard input, output and error of the command, so that no terminal, pipe, disk or locale can break what it does.

a closed descriptor      is /dev/null: else a socket or a file of ours would get its number, and our words with it
its reader has gone      standard output: `ReaderGone`, which ends the command well (`| head`)
the disk is full         standard output: StorageError
any trouble              standard error: what cannot be said is not said
another encoding         what it lacks is written in its own characters
text of strangers        cannot make a terminal act (`text.harmless`); only `styled` text of ours may
"""

from __future__ import annotations

import codecs
import errno
import io
import os
import re
import select
import sys
from collections.abc import Mapping
from typing import Any, TextIO

from splitpoint.errors import StorageError
from splitpoint.text import harmless, valid

_STDOUT, _STDERR = 1, 2
#: Nobody reads any more: a pipe without a reader, a terminal that was closed.
_GONE = (errno.EPIPE, errno.EIO, errno.ECONNRESET)
#: What stands for characters of ours that Latin-1 or ASCII lack; others become escapes.
_PLAINER: Mapping[str, str] = {
    "…": "...", "–": "-", "—": "-", "‘": "'", "’": "'", "“": '"', "”": '"', "×": "x", "→": "->", "←": "<-", "≥": ">=",
    "≤": "<=", "≠": "!=", "±": "+-", "µ": "u", "μ": "u", "·": ".", "•": "*", "✓": "ok", "∞": "inf", "√": "sqrt",
}  # fmt: skip


class ReaderGone(Exception):
    """Whoever read our standard output has gone: not an error, and nobody is there to tell."""


class _Sink(io.FileIO):
    """A descriptor that is written to at once and in full; after the first failure all goes to /dev/null."""

    def __init__(self, fd: int) -> None:
        super().__init__(fd, "w", closefd=False)
        self._fd, self.name = fd, "<stdout>" if fd == _STDOUT else "<stderr>"

    def write(self, data: object) -> int:
        view = memoryview(data).cast("B")  # type: ignore[arg-type]  # as every raw stream takes it
        left = view
        while left:
            try:
                left = left[os.write(self._fd, left) :]
            except BlockingIOError:  # somebody else made the terminal or the pipe so
                waiting = select.poll()
                waiting.register(self._fd, select.POLLOUT)
                waiting.poll()
            except OSError as exc:
                silence(self._fd)
                if self._fd != _STDOUT:  # there is nowhere left to say it
                    break
                if exc.errno in _GONE:
                    raise ReaderGone from exc
                raise StorageError(f"cannot write standard output: {exc.strerror or exc}") from exc
        return len(view)


class _Text(io.TextIOWrapper):
    """Text on its way to a person, by lines."""

    def write(self, text: str, /) -> int:
        super().write(harmless(text))
        return len(text)


class _Styled:
    """The way around `harmless`, for consoles of ours."""

    def __init__(self, stream: _Text) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        return io.TextIOWrapper.write(self._stream, text)


def styled(stream: TextIO) -> TextIO:
    """Where a console of ours writes, colours included."""
    return _Styled(stream) if isinstance(stream, _Text) else stream  # type: ignore[return-value]  # what rich uses of it


def install() -> None:
    """Makes this process's streams such ones."""
    for fd, flags in ((0, os.O_RDONLY), (_STDOUT, os.O_WRONLY), (_STDERR, os.O_WRONLY)):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, flags)  # the lowest number that is free: this one
    if sys.stdin is None:
        sys.stdin = open(0, closefd=False)  # noqa: SIM115 - for as long as the process lives
    for name in ("COLUMNS", "LINES"):
        if not re.fullmatch("[0-9]*[1-9][0-9]*", os.environ.get(name, "1")):  # 0 and nonsense say nothing
            del os.environ[name]
    codecs.register_error("splitpoint", _replaced)
    sys.stdout = _text(sys.stdout, _STDOUT)
    sys.stderr = _text(sys.stderr, _STDERR)


def _text(stream: TextIO | None, fd: int) -> TextIO:
    encoding = stream.encoding if stream is not None else "utf-8"
    return _Text(_Sink(fd), encoding=encoding, errors="splitpoint", line_buffering=fd == _STDERR)


def _replaced(exc: UnicodeError) -> tuple[str, int]:
    if not isinstance(exc, UnicodeEncodeError):
        raise exc
    missing = exc.object[exc.start : exc.end]
    return "".join(_PLAINER.get(c) or valid(c).encode("ascii", "backslashreplace").decode() for c in missing), exc.end


def silence(fd: int) -> None:
    """From now on what is written there goes nowhere, also from threads that wait to write."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, fd)
    os.close(nowhere)
