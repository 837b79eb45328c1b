"""What a server or an edge tells whoever runs it, one sentence each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version


@dataclass(frozen=True, slots=True)
class Event:
    """`kind` is one of listening, warning, connected, left, refused, opened, evicted, batched, failed, fetched,
    profiling, notice, switched, changed."""

    kind: str
    text: str

    def __str__(self) -> str:
        return self.text


#: Called from any thread, one event after the other.
OnEvent = Callable[[Event], None]


def ignore(event: Event) -> None:
    """Does nothing with `event`."""


def software() -> str:
    """Name and version, as HELLO and WELCOME carry them."""
    try:
        return f"splitpoint/{version('splitpoint')}"
    except PackageNotFoundError:
        return "splitpoint"
