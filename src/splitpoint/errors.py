"""The one error tree. A message is one sentence that says what is wrong and what to do.

    SplitpointError                 exit  what went wrong
    ├── UsageError                   2    the call or command line asks for something that makes no sense
    │   ├── CutError                 2    no such layer, node, tensor or index to cut at
    │   ├── MissingExtraError        2    an optional package is needed: the message has the install line
    │   └── UnsupportedError         2    this operating system lacks what is needed
    ├── ModelError                   3    the model cannot be found, read, exported or cut
    ├── InputError                   4    an image, tensor or input spec is broken or of the wrong kind
    │   └── OverBudgetError          4    what a request would send does not fit into the bytes that it may have
    ├── EngineError                  5    the engine, its provider or its device is not there or failed
    ├── ServerError                  6    the server is not there, or ended, or refused the request
    │   ├── ProtocolError            6    the peer does not speak our protocol, or broke it
    │   ├── RefusedError             6    the server does not do this for anyone: trying again is of no use
    │   ├── AccessError              6    the server lets this device in only with TLS, a token or a certificate
    │   ├── UnreachableError         6    no server is there: not yet, or no longer
    │   └── BusyError                6    the server has no room: try again after `retry_after_s`
    ├── StorageError                 7    the disk is full, a file cannot be written, a cached blob has rotted
    │   └── ChangedError             7    a model's file is no longer what was read from it
    └── VerifyError                  1    the two halves do not give the whole model's answer

A foreign exception is mapped to this tree once, at the border it comes through (`raise ModelError(...) from exc`).
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path

from splitpoint import install


class SplitpointError(Exception):
    """Anything splitpoint reports to its user. `exit_code` is the command line's exit status."""

    exit_code = 1


class UsageError(SplitpointError):
    """The call or command line asks for something that makes no sense."""

    exit_code = 2


class CutError(UsageError):
    """No such layer, node, tensor or index to cut at, or no cut there."""


class MissingExtraError(UsageError):
    """An optional package is missing.

    >>> print(MissingExtraError("matplotlib", "plot", "draw pictures"))  # doctest: +ELLIPSIS
    matplotlib is needed to draw pictures (the extra [plot]): ... install 'matplotlib>=...'
    """

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(f"{package} is needed to {purpose} (the extra [{extra}]): {install.extra(extra)}")


class UnsupportedError(UsageError, ImportError):
    """This operating system lacks what is needed: raised when the package is imported."""


class ModelError(SplitpointError):
    """The model cannot be found, read, exported or cut."""

    exit_code = 3


class InputError(SplitpointError):
    """An image, tensor or input spec is broken or of the wrong kind."""

    exit_code = 4


class OverBudgetError(InputError):
    """What a request would send does not fit into the bytes that it may have."""


class EngineError(SplitpointError):
    """The engine, its provider or its device is not there or failed."""

    exit_code = 5


class ServerError(SplitpointError):
    """The server is not there, or ended, or refused the request."""

    exit_code = 6


class ProtocolError(ServerError):
    """The peer does not speak our protocol, or broke it."""


class RefusedError(ServerError):
    """The server does not do this for anyone, as it was started: trying again is of no use."""


class AccessError(ServerError):
    """The server does not let this device in: it wants TLS, its token, or a client certificate."""


class UnreachableError(ServerError):
    """No server is there, as far as can be told from here: not yet, or no longer, or not by that name."""


class BusyError(ServerError):
    """The server has no room: try again after `retry_after_s` seconds."""

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class StorageError(SplitpointError):
    """The disk is full, a file cannot be written, a cached blob has rotted."""

    exit_code = 7


class ChangedError(StorageError):
    """The file `path` of a model is no longer what was read from it: nothing is computed from it any more."""

    def __init__(self, message: str, path: Path) -> None:
        super().__init__(message)
        self.path = path


class VerifyError(SplitpointError):
    """The two halves do not give the whole model's answer, or nothing proves that they do."""


#: No name that anyone misspells is longer. Comparing takes time and memory in proportion, and strangers send names.
_LONGEST = 1000


def nearest(name: str, known: Iterable[str]) -> str:
    """A phrase that names the nearest known names, or ``""``: the tail of a "no such" message.

    >>> nearest("featurs.7", ["features.7", "features.8", "classifier"])
    '; did you mean features.7 or features.8?'
    """
    if len(name) > _LONGEST:
        return ""
    close = difflib.get_close_matches(name, list(known), n=3, cutoff=0.5)
    if not close:
        return ""
    *others, last = close
    return f"; did you mean {', '.join(others)} or {last}?" if others else f"; did you mean {last}?"
