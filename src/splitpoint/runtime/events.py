"""What a server or an edge tells whoever runs it: a kind, a sentence, and its fields."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import Literal

from splitpoint.callbacks import call, log
from splitpoint.text import plain

EventKind = Literal[
    "listening", "warning", "connected", "left", "refused", "opened", "evicted", "batched", "failed", "profiling",
    "fetched", "notice", "switched", "changed", "planned",
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Event:
    """What happened: its kind, a `sentence` for people, and what is in that for programs.

    `fields` has, where known, ``peer`` (the client's address), ``why``, ``model``, ``tail`` (a segment's key), and
    numbers (``nbytes``). They may hold a stranger's words; so may `sentence`, of which `str` makes one harmless line.

    >>> str(Event("left", "10.0.0.7:4000 left: 3 requests", {"peer": "10.0.0.7:4000", "answers": 3}))
    '10.0.0.7:4000 left: 3 requests'
    """

    kind: EventKind
    sentence: str
    fields: Mapping[str, object] = field(default_factory=dict)

    def __str__(self) -> str:
        return plain(self.sentence, 4000)


#: Called from the thread in which something happens, so it must be quick; what it raises is reported, and ignored. It
#: may use and close the edge or the server that tells it; a server then ends behind its back.
OnEvent = Callable[[Event], None]

#: Kind → how the logger ranks it, if not as information.
_LEVELS: Mapping[str, int] = {
    "failed": logging.ERROR, "warning": logging.WARNING, "refused": logging.WARNING, "notice": logging.WARNING,
    "opened": logging.DEBUG, "batched": logging.DEBUG, "evicted": logging.DEBUG,
}  # fmt: skip


def ignore(event: Event) -> None:
    """Does nothing with `event`."""


class Teller:
    """Tells `on_event` and the logger ``splitpoint`` of each event; neither can fail whoever tells."""

    def __init__(self, on_event: OnEvent = ignore) -> None:
        self._on_event = on_event
        self._held = threading.local()

    def __call__(self, event: Event) -> None:
        held: list[Event] | None = getattr(self._held, "events", None)
        if held is not None:
            held.append(event)
            return
        before, self._held.telling = self.telling, True
        try:
            call(_to_log, event)
            call(self._on_event, event)
        finally:
            self._held.telling = before

    def redirect(self, on_event: OnEvent) -> None:
        """From now on `on_event` is told, and nobody who was before."""
        self._on_event = on_event

    @property
    def telling(self) -> bool:
        """Whether this thread is just being told something: it is the teller's, and nothing may wait for it."""
        return getattr(self._held, "telling", False)

    @contextmanager
    def held(self) -> Iterator[None]:
        """What this thread tells inside is told at its end: for where a lock is held that `on_event` might want."""
        if getattr(self._held, "events", None) is not None:
            yield
            return
        events: list[Event] = []
        self._held.events = events
        try:
            yield
        finally:
            self._held.events = None
            for event in events:
                self(event)


def teller(on_event: OnEvent) -> Teller:
    """`on_event` as one that cannot raise."""
    return on_event if isinstance(on_event, Teller) else Teller(on_event)


def _to_log(event: Event) -> None:
    log.log(_LEVELS.get(event.kind, logging.INFO), "%s", event, extra={"kind": event.kind})


def software() -> str:
    """Name and version, as HELLO and WELCOME carry them."""
    try:
        return f"splitpoint/{version('splitpoint')}"
    except PackageNotFoundError:
        return "splitpoint"
