"""Requests of an edge whose model may change meanwhile: begun with one binding, ended with that or the next one."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from splitpoint.errors import SplitpointError, UsageError
from splitpoint.graph import Cut
from splitpoint.runtime.client.edge_settings import At, Inputs
from splitpoint.runtime.client.edge_stats import RequestTally
from splitpoint.runtime.client.following import Followed
from splitpoint.runtime.client.request import Ticket
from splitpoint.runtime.codec_choice import CodecChoice
from splitpoint.runtime.result import Request, Result
from splitpoint.runtime.watcher import Watcher, tell


class Inference:
    """`followed` has the binding of the moment; `check` raises once the edge is closed.

    Every request is counted in `tally` when it is answered, fails, or is abandoned.
    """

    def __init__(
        self, followed: Followed, check: Callable[[], None], watchers: Sequence[Watcher]
    ) -> None:  # fmt: skip
        self._followed, self._check, self._watchers = followed, check, watchers
        self.tally = RequestTally()

    def ask(self, inputs: Inputs, at: At | None, codec: CodecChoice | None, deadline_s: float, more: bool) -> Result:
        """The answer to one request, cut at `at` (None: where all are) and with `codec`, by the deadline."""
        try:
            ticket = self._begun(inputs, at, codec, deadline_s, more)
            requests = ticket.requests
            try:
                requests.send(ticket)
                self.tally.settle()
                result = requests.finish(ticket)
            except SplitpointError as exc:
                result = self._asked_anew(ticket, exc, at, codec)
        except BaseException as exc:
            self.tally.failed(type(exc).__name__)
            raise
        self.tally.answered(result)
        if self._watchers:
            tell(self._watchers, lambda w: w.delivered(ticket.request, result))
        return result

    def begin(self, inputs: Inputs, deadline_s: float, more: bool) -> Ticket:
        """One request of many, with its head run, and ready to be sent."""
        try:
            return self._begun(inputs, None, None, deadline_s, more)
        except BaseException as exc:
            self.tally.failed(type(exc).__name__)
            raise

    def send(self, ticket: Ticket) -> Ticket:
        """Hands it over, if it is to go to the server."""
        try:
            ticket.requests.send(ticket)
            self.tally.settle()
            return ticket
        except BaseException as exc:
            self.tally.failed(type(exc).__name__)
            raise

    def finish(self, ticket: Ticket) -> Result:
        """Its answer."""
        try:
            try:
                result = ticket.requests.finish(ticket)
            except SplitpointError as exc:
                result = self._asked_anew(ticket, exc, None, None)
        except BaseException as exc:
            self.tally.failed(type(exc).__name__)
            raise
        self.tally.answered(result)
        if self._watchers:
            tell(self._watchers, lambda w: w.delivered(ticket.request, result))
        return result

    def abandon(self, ticket: Ticket) -> None:
        """Nobody waits for the answer any more."""
        ticket.requests.abandon(ticket)
        self.tally.failed("abandoned")

    def _begun(
        self, inputs: Inputs, at: At | None, codec: CodecChoice | None, deadline_s: float, more: bool
    ) -> Ticket:  # fmt: skip
        request = inputs if isinstance(inputs, Request) else Request(inputs)
        while True:
            binding = self._followed.binding
            try:
                route = binding.cuts.current if at is None else self._followed.route(binding, at, codec, hurry=True)
                if route.placement.hold():
                    return binding.requests.begin(route, request, deadline_s, more)
                self._check()
                if at is not None and not binding.replaced:
                    raise UsageError(f"{route.placement.cut.name} was forgotten while a request was to use it")
            except SplitpointError:
                self._check()  # closed meanwhile: that is the reason, whatever it looked like
                if not binding.replaced:
                    raise
            if binding.replaced and isinstance(at, Cut):
                at = at.name  # in another model a cut goes by its name

    def _asked_anew(
        self, ticket: Ticket, exc: SplitpointError, at: At | None, codec: CodecChoice | None
    ) -> Result:  # fmt: skip
        """Raises `exc`, unless the model that the request was begun with is gone: then it begins again with the one
        that took its place."""
        while True:
            self._check()
            if not ticket.requests.replaced:
                raise exc
            left_s = max(ticket.left_s(), 1e-3) if ticket.deadline_s else 0.0
            named = at.name if isinstance(at, Cut) else at
            ticket = self._begun(ticket.request, named, codec, left_s, ticket.more)
            try:
                return ticket.requests.finish(ticket.requests.send(ticket))
            except SplitpointError as again:
                exc = again
