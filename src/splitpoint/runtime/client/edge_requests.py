"""Requests of an edge whose model may change meanwhile, and what became of them, in numbers.

>>> tally = RequestTally()
>>> for ms in (2.0, 3.0):
...     tally.answered(Result({}, "conv1", Marks(0.0, 0.0, 0.0, ms * 1e-3), up_nbytes=150_000, down_nbytes=4_000))
>>> tally.failed("BusyError")
>>> counts = tally.counts(under_way=1)
>>> counts.asked, counts.answered_remotely, counts.answered_here, counts.failed, counts.in_flight
(4, 2, 0, {'BusyError': 1}, 1)
>>> counts.remote.quantile(0.5)
0.002048
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence

import msgspec

from splitpoint.errors import SplitpointError, UsageError
from splitpoint.graph import Cut
from splitpoint.runtime.adapt.conditions import Conditions
from splitpoint.runtime.circuit_breaker import LinkState
from splitpoint.runtime.client.edge_settings import At, Inputs
from splitpoint.runtime.client.model_binding import Followed
from splitpoint.runtime.client.request import Ticket
from splitpoint.runtime.codec_choice import CodecChoice
from splitpoint.runtime.histogram import Histogram, Tally
from splitpoint.runtime.result import Marks, Request, Result, Watcher, tell


class Inference:
    """`followed` has the binding of the moment; `check` raises once the edge is closed. Every request is counted in
    `tally` when it is answered, fails, or is abandoned."""

    def __init__(self, followed: Followed, check: Callable[[], None], watchers: Sequence[Watcher]) -> None:
        self._followed, self._check, self._watchers = followed, check, watchers
        self.tally = RequestTally()

    def begin(
        self, inputs: Inputs, deadline_s: float, more: bool, at: At | None = None, codec: CodecChoice | None = None
    ) -> Ticket:
        """A request with its head run, and ready to be sent: cut at `at` (None: where all are), and with `codec`."""
        request = inputs if isinstance(inputs, Request) else Request(inputs)
        try:
            while True:
                binding = self._followed.binding
                try:
                    route = binding.cuts.current if at is None else self._followed.route(binding, at, codec, hurry=True)
                    if route.placement.hold():
                        return binding.requests.begin(route, request, deadline_s, more)
                    self._check()
                    if at is not None and not binding.requests.replaced:
                        raise UsageError(f"{route.placement.cut.name} was forgotten while a request was to use it")
                except SplitpointError:
                    self._check()  # closed meanwhile: that is the reason, whatever it looked like
                    if not binding.requests.replaced:
                        raise
                if binding.requests.replaced and isinstance(at, Cut):
                    at = at.name  # in another model a cut goes by its name
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

    def finish(self, ticket: Ticket, at: At | None = None, codec: CodecChoice | None = None) -> Result:
        """Its answer. If its model is gone, it begins again at the same cut of the one that took its place."""
        moved = False
        try:
            try:
                result = ticket.requests.finish(ticket)
            except SplitpointError:
                self._check()
                moved = ticket.requests.replaced
                if not moved:
                    raise
        except BaseException as exc:
            self.tally.failed(type(exc).__name__)
            raise
        if moved:
            left_s = max(ticket.left_s(), 1e-3) if ticket.deadline_s else 0.0
            at = at.name if isinstance(at, Cut) else at
            again = self.begin(ticket.request, left_s, ticket.more, at, codec)
            return self.finish(self.send(again), at, codec)
        self.tally.answered(result)
        if self._watchers:
            tell(self._watchers, lambda w: w.delivered(ticket.request, result))
        return result

    def abandon(self, ticket: Ticket) -> None:
        """Nobody waits for the answer any more."""
        ticket.requests.abandon(ticket)
        self.tally.failed("abandoned")


class RequestCounts(msgspec.Struct, frozen=True, kw_only=True):
    """Of the requests that were asked, each is answered by the server, answered here, failed (by the name of its error;
    ``abandoned``: nobody waited any more), or in flight. `up_nbytes` and `down_nbytes` are those of answers that came
    from the server, `remote` and `here` how long a request took that the server, or this device, answered.
    """

    asked: int
    answered_remotely: int
    answered_here: int
    failed: Mapping[str, int]
    up_nbytes: int
    down_nbytes: int
    remote: Histogram
    here: Histogram

    @property
    def in_flight(self) -> int:
        """Asked, and nothing has come of them yet."""
        return self.asked - self.answered_remotely - self.answered_here - sum(self.failed.values())


class EdgeStats(msgspec.Struct, frozen=True, kw_only=True):
    """What `Edge.stats` returns. `requests`, `connections` (the first one included) and `switches` (of the cut, by
    `adapt`) count from the beginning, and so do tensors with values far `outside` of what their codec was calibrated
    on; the cut, the state of the link, its shortest recent round trip, and what `adapt` believes of link, device and
    server (None without it) are as of now.
    """

    requests: RequestCounts
    connections: int
    switches: int
    cut: str
    link_state: LinkState
    round_trip_ms: float
    believed: Conditions | None = None
    outside: int = 0


class RequestTally:
    """Counts what became of requests, from any thread. What is told of an answer is only kept, as whoever asked waits,
    and counted later (`settle`), or when somebody looks."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._answers: deque[tuple[Marks, int, int]] = deque()
        self._asked = self._up_nbytes = self._down_nbytes = 0
        self._failed: dict[str, int] = {}
        self._remote, self._here = Tally(), Tally()

    def answered(self, result: Result) -> None:
        """One was answered: by the server if bytes went up."""
        self._answers.append((result.marks, result.up_nbytes, result.down_nbytes))

    def settle(self) -> None:
        """Counts what is kept. Called while a server computes, so that it delays no answer."""
        if self._answers:
            with self._lock:
                self._count()

    def failed(self, kind: str) -> None:
        """One was not answered."""
        with self._lock:
            self._failed[kind] = self._failed.get(kind, 0) + 1

    def _count(self) -> None:
        while self._answers:
            marks, up_nbytes, down_nbytes = self._answers.popleft()
            seconds = marks.ended - marks.started
            if up_nbytes:
                self._remote.add(seconds)
                self._up_nbytes += up_nbytes
                self._down_nbytes += down_nbytes
            else:
                self._here.add(seconds)

    def counts(self, under_way: int) -> RequestCounts:
        """All of it, as of one moment, at which nothing had come of `under_way` requests yet."""
        with self._lock:
            self._count()
            remote, here = self._remote.histogram(), self._here.histogram()
            ended = remote.count + here.count + sum(self._failed.values())
            # One that has just ended may be in neither: what was asked never becomes less.
            self._asked = max(self._asked, ended + under_way)
            return RequestCounts(
                asked=self._asked,
                answered_remotely=remote.count,
                answered_here=here.count,
                failed=dict(self._failed),
                up_nbytes=self._up_nbytes,
                down_nbytes=self._down_nbytes,
                remote=remote,
                here=here,
            )
