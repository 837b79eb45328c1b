"""Requests of an edge whose model may change meanwhile: begun with one binding, ended with that or the next one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from splitpoint.errors import SplitpointError, UsageError
from splitpoint.graph import Cut
from splitpoint.runtime.client.channel import CLOSED
from splitpoint.runtime.client.edge_stats import RequestTally
from splitpoint.runtime.client.model_binding import Binding
from splitpoint.runtime.client.opened_cut import Route
from splitpoint.runtime.client.request import Moved, Ticket
from splitpoint.runtime.codec_choice import CodecChoice
from splitpoint.runtime.result import Request, Result
from splitpoint.runtime.watcher import Watcher, tell
from splitpoint.tensors import Array

Inputs = Mapping[str, Array] | Array | Request
At = str | int | Cut
"""A cut, its name, or its number."""


class How(NamedTuple):
    """Where a request is cut (None: as all are), with which codecs, by when, and whether more follow at once."""

    at: At | None
    codec: CodecChoice | None
    deadline_s: float
    more: bool

    def moved(self, deadline_s: float) -> How:
        """The same for another model, in which a cut goes by its name."""
        at = self.at.name if isinstance(self.at, Cut) else self.at
        return self._replace(at=at, deadline_s=deadline_s)


class Asked(NamedTuple):
    """A request under way, and what it was begun with."""

    binding: Binding
    ticket: Ticket
    how: How


class Inference:
    """`binding` gives the one of the moment, `route` a cut of it made ready, `check` raises once the edge is closed.

    Every request is counted in `tally`: once when it begins, and once when it is answered, fails, or is abandoned.
    """

    def __init__(
        self, binding: Callable[[], Binding], route: Callable[[Binding, At, CodecChoice | None], Route],
        check: Callable[[], None], watchers: Sequence[Watcher],
    ) -> None:  # fmt: skip
        self._binding, self._route, self._check, self._watchers = binding, route, check, watchers
        self.tally = RequestTally()

    def begin(self, inputs: Inputs, how: How) -> Asked:
        """The request with its head run, and ready to be sent."""
        self.tally.begun()
        try:
            return self._begun(as_request(inputs), how)
        except BaseException as exc:
            self.tally.failed(type(exc).__name__)
            raise

    def send(self, asked: Asked) -> Asked:
        """Hands it over, if it is to go to the server."""
        try:
            asked.binding.requests.send(asked.ticket)
        except BaseException as exc:
            self.tally.failed(type(exc).__name__)
            raise
        return asked

    def finish(self, asked: Asked) -> Result:
        """The answer."""
        try:
            result = self._finished(asked)
        except BaseException as exc:
            self.tally.failed(type(exc).__name__)
            raise
        marks = result.marks
        self.tally.answered(marks.ended - marks.started, up_nbytes=result.up_nbytes, down_nbytes=result.down_nbytes)
        if self._watchers:
            tell(self._watchers, lambda w: w.delivered(asked.ticket.request, result))
        return result

    def abandon(self, asked: Asked) -> None:
        """Nobody waits for the answer any more."""
        asked.binding.requests.abandon(asked.ticket)
        self.tally.failed("abandoned")

    def hold(self, binding: Binding, wanted: Route | None = None) -> Route:
        """The current route (or `wanted`), whose halves are kept until the request is answered."""
        while not (route := wanted or binding.cuts.current).placement.hold():
            self._check()
            if binding.replaced:
                raise Moved(CLOSED)
            if wanted is not None:
                raise UsageError(f"{route.placement.cut.name} was forgotten while a request was to use it")
        return route

    def _begun(self, request: Request, how: How) -> Asked:
        while True:
            binding = self._binding()
            try:
                wanted = None if how.at is None else self._route(binding, how.at, how.codec)
                route = self.hold(binding, wanted)
                return Asked(binding, binding.requests.begin(route, request, how.deadline_s, how.more), how)
            except SplitpointError:
                self._check()  # closed meanwhile: that is the reason, whatever it looked like
                if not binding.replaced:
                    raise
                how = how.moved(how.deadline_s)

    def _finished(self, asked: Asked) -> Result:
        while True:
            binding, ticket, how = asked
            try:
                return binding.requests.finish(ticket)
            except SplitpointError:
                self._check()
                if not binding.replaced:
                    raise
                # The model it was begun with is gone: it begins again with the one that took its place.
                left_s = max(ticket.left_s(), 1e-3) if ticket.deadline_s else 0.0
                asked = self._begun(ticket.request, how.moved(left_s))
                asked.binding.requests.send(asked.ticket)
            finally:
                binding.answered()


def as_request(inputs: Inputs) -> Request:
    """`inputs` as a request that brings nothing along, if they are none already."""
    return inputs if isinstance(inputs, Request) else Request(inputs)
