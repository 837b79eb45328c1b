"""What an edge has done so far, in numbers: one frozen snapshot, cheap enough for once a second.

>>> tally = RequestTally()
>>> for ms in (2.0, 3.0):
...     tally.begun()
...     tally.answered(ms * 1e-3, up_nbytes=150_000, down_nbytes=4_000)
>>> tally.begun()
>>> counts = tally.counts()
>>> counts.asked == counts.answered_remotely + counts.answered_here + sum(counts.failed.values()) + counts.in_flight
True
>>> counts.in_flight, counts.remote.quantile(0.5)
(1, 0.002048)
"""

from __future__ import annotations

import threading
from collections.abc import Mapping

import msgspec

from splitpoint.runtime.adapt.conditions import Conditions
from splitpoint.runtime.circuit_breaker import LinkState
from splitpoint.runtime.histogram import Histogram, Tally


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
    `adapt`) count from the beginning; the cut, the state of the link, its shortest recent round trip, and what `adapt`
    believes of link, device and server (None without it) are as of now.
    """

    requests: RequestCounts
    connections: int
    switches: int
    cut: str
    link_state: LinkState
    round_trip_ms: float
    believed: Conditions | None = None


class RequestTally:
    """Counts requests, from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._asked = self._up_nbytes = self._down_nbytes = 0
        self._failed: dict[str, int] = {}
        self._remote, self._here = Tally(), Tally()

    def begun(self) -> None:
        """A request was asked."""
        with self._lock:
            self._asked += 1

    def answered(self, seconds: float, *, up_nbytes: int = 0, down_nbytes: int = 0) -> None:
        """One was answered after so long: by the server if bytes went up."""
        with self._lock:
            if up_nbytes:
                self._remote.add(seconds)
                self._up_nbytes += up_nbytes
                self._down_nbytes += down_nbytes
            else:
                self._here.add(seconds)

    def failed(self, kind: str) -> None:
        """One was not answered."""
        with self._lock:
            self._failed[kind] = self._failed.get(kind, 0) + 1

    def counts(self) -> RequestCounts:
        """All of it, as of one moment."""
        with self._lock:
            remote, here = self._remote.histogram(), self._here.histogram()
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
