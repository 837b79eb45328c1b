"""Whoever wants to know how the requests of an edge fare: what a planner that adapts learns from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from splitpoint.callbacks import guard
from splitpoint.graph import Cut
from splitpoint.runtime.circuit_breaker import LinkState
from splitpoint.runtime.result import Request, Result


class Watcher(Protocol):
    """Told by an `Edge`, from whatever thread something happens in: must be quick. What it raises is ignored."""

    def answered(self, result: Result, remote_ms: float) -> None:
        """The server answered, `remote_ms` after the request was handed over.

        Every answer, also that of a shadow, and one that came too late for its request: then `result` has no outputs.
        """

    def delivered(self, request: Request, result: Result) -> None:
        """A request was answered to whoever asked, here or at the server."""

    def computed(self, cut: Cut, head_ms: float) -> None:
        """A head was run on the device; where nothing crosses, the whole model."""

    def overdue(self, up_nbytes: int, age_ms: float) -> None:
        """A request is late: nothing has come `age_ms` after its `up_nbytes` were handed over."""

    def failed(self, why: str) -> None:
        """The server's part of a request failed: it was busy, gone, or wrong."""

    def state(self, state: LinkState) -> None:
        """`Edge.link_state` is `state` from now on."""


def tell(watchers: Sequence[Watcher], what: Callable[[Watcher], None]) -> None:
    """Says `what` to each of `watchers`, of which there may be fewer or more meanwhile."""
    for watcher in tuple(watchers):
        with guard(type(watcher).__qualname__):
            what(watcher)
