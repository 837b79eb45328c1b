"""What frames, pings and silence show of a link → the link that a plan may count on now. Pure: no clock, no thread.

The rates are those of `splitpoint.link.estimator`. Here is what it does not know: which part of a frame's time was
waiting behind other frames (`SharedUplink`), and rules for a link that changes suddenly (why: docs/design/adapt.md).

* A frame is early only because the link is fast: one that is very early, or several in a row, begin the estimate anew.
* So does an estimate that is faster than most of the last frames allow (a ramp that it took for a cost beside bytes).
* A request that should have been answered long ago bounds the uplink from above. Half of that bound is believed until
  the answer comes, which then shows whether it was the link.
"""

from __future__ import annotations

from collections import deque
from itertools import pairwise
from math import exp, inf, log, sqrt
from statistics import median
from typing import NamedTuple

import msgspec

from splitpoint.link import Link
from splitpoint.link.estimator import LinkEstimator

#: What was observed of the link this long ago counts half.
_HALF_LIFE_S = 5.0
#: A rate that differs by this factor from what was believed is another one: by one frame, by some in a row. On a link
#: whose frames differ anyway it takes so many of their standard deviations (of the logarithm).
_OTHER, _OTHER_ALL = 1.5, 1.2
_OTHER_DEVIATIONS, _OTHER_ALL_DEVIATIONS = 3.0, 1.5
_ROW = 3
#: Frames that are remembered, and for how long; the standard deviation in median absolute ones.
_FRAMES, _SHOWN_S, _MAD = 12, 3.0, 1.48
#: A frame's time beside the round trip and its bytes (ms, and a share of the round trip): by how much it may be
#: measured too short, and what it is at most.
_SLACK_MS, _SLACK_TRIPS = 0.5, 0.05
_BESIDE_MS, _BESIDE_TRIPS = 1.0, 0.1
#: The least uplink that silence is taken for, Mbit/s.
_LEAST_MBPS = 0.02
#: Frames smaller than this say nothing about a rate by themselves.
_TELLING_NBYTES = 500
#: Two moments of one request, as told by two callers, are this close, seconds.
_SAME_S = 0.05
#: Round trips that are kept for a new estimator.
_PINGS = 8


class FrameTime(NamedTuple):
    """A frame one way: its bytes, and the milliseconds from handing it over until the last of them was there."""

    nbytes: float
    ms: float


class LinkBelief:
    """Follows one link. `start` is believed at first; `measured`: it was measured just now.

    `hasty`: the rules apply. They see a change within a frame, at the price of a rougher estimate on a noisy link.
    One thread at a time; moments (`now_s`) are seconds on any one clock of the device.
    """

    def __init__(self, start: Link, *, measured: bool = False, hasty: bool = True) -> None:
        self._hasty = hasty
        self._estimator = LinkEstimator(start, _HALF_LIFE_S, measured=measured)
        self._pings: deque[tuple[float, float]] = deque(maxlen=_PINGS)
        self._overdue: _Overdue | None = None
        self.uplink = SharedUplink()
        self._back_s = -inf  # when the last answer was complete: the next one cannot have begun to move before
        self._shown: deque[tuple[float, tuple[_RateBounds, _RateBounds]]] = deque(maxlen=_FRAMES)

    def at(self, now_s: float) -> tuple[Link, float]:
        """(the link, what a request costs beyond it in ms)."""
        link = self._estimator.link
        if self._overdue is not None and (likely := self._overdue.likely_mbps(now_s)) < link.up_mbps:
            link = msgspec.structs.replace(link, up_mbps=likely)
        return link, self._estimator.overhead_ms

    def wait_for(self, now_s: float, nbytes: float, age_ms: float, there_ms: float) -> None:
        """Nothing came for a request of `nbytes` for `age_ms`; the server usually has it for `there_ms`."""
        if self._overdue is None and nbytes > 0 and age_ms > 0:
            # Later ones wait for this one: they say nothing of their own.
            handed_s, rtt_ms = now_s - age_ms * 1e-3, self._estimator.link.rtt_ms
            began_s = max(handed_s, self.uplink.arrived_s - rtt_ms / 2e3)
            self._overdue = _Overdue(handed_s, began_s, nbytes, rtt_ms + there_ms)

    def give_up(self) -> None:
        """There will be no answer to what was waited for, or it says nothing of the link."""
        self._overdue = None

    def observe(
        self, now_s: float, up: FrameTime, down: FrameTime, rtt_ms: float, remote_ms: float, request: int | None = None
    ) -> float:
        """Two frames there and back, complete at `now_s`, `remote_ms` after the first was handed over. `rtt_ms` is what
        an empty message took (0: not known).

        `request` is the one that `uplink` was told of, if it was. Returns how long the first frame waited on the link
        for those before it, ms.
        """
        if rtt_ms > 0:
            self._pings.append((now_s, rtt_ms))
            self._estimator.ping(now_s, rtt_ms)
        half_ms, handed_s = self._estimator.link.rtt_ms / 2, now_s - remote_ms * 1e-3
        ready_s = handed_s + half_ms * 1e-3
        start_s, carried = self.uplink.answered(request, ready_s, handed_s + up.ms * 1e-3, up.nbytes)
        down = self._without_waiting(now_s, down, half_ms)
        nothing = FrameTime(0.0, half_ms)
        uploads = [FrameTime(c.nbytes, c.seconds * 1e3 + half_ms) for c in carried] or [nothing]
        for upload in uploads[:-1]:
            self._learn(now_s, handed_s, upload, nothing)
        self._learn(now_s, handed_s, uploads[-1], down)
        return (start_s - ready_s) * 1e3

    def _learn(self, now_s: float, handed_s: float, up: FrameTime, down: FrameTime) -> None:
        if self._overdue is not None and (slower := self._slower(self._overdue, handed_s, up)) is not None:
            self._begin_anew(slower)
        if not self._hasty:
            self._estimator.observe(now_s, up.nbytes, up.ms, down.nbytes, down.ms)
            return
        bounds = self._bounds(up, down)
        self._correct(bounds, 1)
        self._estimator.observe(now_s, up.nbytes, up.ms, down.nbytes, down.ms)
        while self._shown and self._shown[0][0] < now_s - _SHOWN_S:
            self._shown.popleft()
        self._shown.append((now_s, bounds))
        self._correct(bounds, _ROW)

    def _begin_anew(self, link: Link) -> None:
        self._estimator = LinkEstimator(link, _HALF_LIFE_S)
        for at_s, ms in self._pings:
            self._estimator.ping(at_s, ms)

    def _without_waiting(self, now_s: float, down: FrameTime, half_ms: float) -> FrameTime:
        """The answer without the time that it waited on the link for the answer before it (a pipelined stream)."""
        if self._back_s > now_s:
            return down
        waited_ms = max(0.0, (self._back_s - now_s) * 1e3 + down.ms - half_ms)
        self._back_s = now_s
        return FrameTime(down.nbytes, down.ms - waited_ms)

    def _slower(self, overdue: _Overdue, handed_s: float, up: FrameTime) -> Link | None:
        """The link by an answer that was `overdue`, where that is much slower than believed."""
        if handed_s < overdue.handed_s - _SAME_S:
            return None
        self._overdue = None
        if up.nbytes != overdue.nbytes or handed_s > overdue.handed_s + _SAME_S:
            return None  # of a later request: it may have waited itself
        believed = self._estimator.link
        ms = max(up.ms - believed.rtt_ms / 2, 1e-3)
        shown = max(up.nbytes * 8e-3 / ms, _LEAST_MBPS)
        return msgspec.structs.replace(believed, up_mbps=shown) if shown * _OTHER < believed.up_mbps else None

    def _bounds(self, up: FrameTime, down: FrameTime) -> tuple[_RateBounds, _RateBounds]:
        """Between which rates up and down lie by these frames.

        Both ways together, because the error of the clocks' offset is in each, one against the other.
        """
        link = self._estimator.link
        slack_ms = max(_SLACK_MS, _SLACK_TRIPS * link.rtt_ms)
        beside_ms = max(_BESIDE_MS, _BESIDE_TRIPS * link.rtt_ms)
        spent_ms = up.ms + down.ms
        # Less than a round trip: the round trip is not what it was, and all that is sure is the sum.
        net_ms = max(0.0, spent_ms - link.rtt_ms) if spent_ms > link.rtt_ms - slack_ms else spent_ms

        def bounds(way: FrameTime, other_ms: float) -> _RateBounds:
            if way.nbytes < _TELLING_NBYTES:
                return _RateBounds(0.0, inf, inf)
            low = way.nbytes * 8e-3 / (net_ms + slack_ms)
            own_ms = min(net_ms - other_ms, way.ms - link.rtt_ms / 2)  # the other way may be slower than believed
            if own_ms <= slack_ms:
                return _RateBounds(low, inf, inf)
            middle = way.nbytes * 8e-3 / own_ms
            return _RateBounds(low, middle, middle * own_ms / max(own_ms - beside_ms, own_ms / _OTHER))

        return bounds(up, link.down_ms(down.nbytes)), bounds(down, link.up_ms(up.nbytes))

    def _correct(self, now: tuple[_RateBounds, _RateBounds], row: int) -> None:
        """Begins anew if a rate is below what the last `row` frames show at least, or above what most frames show at
        most: one that is late shows nothing."""
        link, faster = self._estimator.link, False
        rates = [link.up_mbps, link.down_mbps]
        for k, rate in enumerate(rates):
            recent = [frames[k] for _, frames in self._shown]
            last = recent[-row:] if row > 1 else [now[k]]
            least = rate * self._factor(row)
            if len(last) == row and all(least < frame.low for frame in last):
                rates[k] = median(frame.low for frame in last)
                faster = True
            elif len(recent) >= _ROW and rate > _OTHER_ALL * median(frame.high for frame in recent):
                rates[k] = median(frame.middle for frame in recent)
        if rates != [link.up_mbps, link.down_mbps]:
            self._begin_anew(msgspec.structs.replace(link, up_mbps=rates[0], down_mbps=rates[1]))
        if faster:
            self._shown.clear()  # of a link that was slower

    def _factor(self, row: int) -> float:
        """By which factor so many frames in a row must be faster than believed, so that it is no accident.

        Their spread is that from one frame to the next, so that a step, or a ramp, is none.
        """
        rates = [log(up.middle) for _, (up, _) in self._shown if up.middle < inf]
        changes = [abs(b - a) for a, b in pairwise(rates)]
        spread = _MAD * median(changes) / sqrt(2) if len(changes) >= _ROW else 0.0
        least, deviations = (_OTHER, _OTHER_DEVIATIONS) if row == 1 else (_OTHER_ALL, _OTHER_ALL_DEVIATIONS)
        return max(least, exp(deviations * spread))


class _RateBounds(NamedTuple):
    """What a frame shows of a rate, Mbit/s: at least, if it cost nothing beside its bytes, at most."""

    low: float
    middle: float
    high: float


class _Overdue(NamedTuple):
    """A request that has not been answered in time: when it was handed over, when the link was free for it, and for
    how long it would have been elsewhere."""

    handed_s: float
    began_s: float
    nbytes: float
    elsewhere_ms: float

    def likely_mbps(self, now_s: float) -> float:
        """The uplink, if half of the frame is through by now: what has taken so long may take as long again.

        Where nothing is known of how long something lasts, its age is the median of what is left (Gott, Nature 1993).
        The rate that would just have had it answered by now is only the best that the link can still be: planning for
        that one led to a switch to a cut between, and, a dwell later, to another one.
        """
        on_link_ms = (now_s - self.began_s) * 1e3 - self.elsewhere_ms
        return max(self.nbytes * 8e-3 / (2 * on_link_ms), _LEAST_MBPS) if on_link_ms > 0 else inf


# --- what many requests at once show --------------------------------------------------------------------------------


class Carried(NamedTuple):
    """So many bytes in so many seconds, the last of which arrived `at`."""

    at: float
    nbytes: float
    seconds: float


class _Upload(NamedTuple):
    start: float
    end: float
    nbytes: float
    connection: object


class SharedUplink:
    """When requests were on their way up, and what that shows, as soon as no other request may have shared the link.

    A request that was handed over behind others waits for them: the time until its last byte is there says how long
    the queue was, not how fast the link is. On one connection requests follow each other, so the bytes of one begin to
    arrive when those of the one before have arrived. Connections share the link: where requests of several were on
    their way at the same time, only all their bytes over all that time are the link's rate. So where there are several
    connections, `sent` must be told of each request before; with one connection that is not needed.

    >>> uplink = SharedUplink()
    >>> for id, connection in ((1, "a"), (2, "a"), (3, "b")):
    ...     uplink.sent(id, connection, 0.0)
    >>> uplink.answered(1, 0.0, 1.0, 1000)          # alone it would say 1000 bytes in 1 s, but b may share the link
    (0.0, [])
    >>> uplink.answered(2, 0.0, 2.0, 1000)
    (1.0, [])
    >>> uplink.answered(3, 0.0, 2.0, 1000)
    (0.0, [Carried(at=2.0, nbytes=3000, seconds=2.0)])
    """

    def __init__(self) -> None:
        self._under_way: dict[int, tuple[object, float]] = {}
        self._arrived: dict[object, float] = {}
        self._done: list[_Upload] = []
        self.arrived_s = -inf
        """When the last request was there, on any connection."""
        self.busy_s = 0.0
        """For how long something was on its way, in all that was told."""

    @property
    def in_use(self) -> bool:
        """Whether a request that was sent has neither been answered nor dropped."""
        return bool(self._under_way)

    def sent(self, id: int, connection: object, now: float) -> None:
        """A request that may cross was begun."""
        self._under_way[id] = connection, now

    def dropped(self, id: int) -> list[Carried]:
        """It did not cross, or nobody knows how: (what is known now that was not sure before)."""
        self._under_way.pop(id, None)
        return self._told()

    def answered(self, id: int | None, ready: float, arrived: float, nbytes: float) -> tuple[float, list[Carried]]:
        """Its first byte could be there at `ready`, its last one was at `arrived`: (when its own bytes began to
        arrive, what is known now). `id` is None for a request of the only connection."""
        connection = self._under_way.pop(id, (None, 0.0))[0] if id is not None else None
        before = self._arrived.get(connection, -inf)
        start = ready
        if before <= arrived:  # else the answers came in another order, and nobody knows what it waited for
            start, self._arrived[connection] = max(ready, before), arrived
        self.arrived_s = max(self.arrived_s, arrived)
        if not self._under_way and not self._done:  # as always with one connection: nobody shared the link
            self.busy_s += max(0.0, arrived - start)
            return start, [Carried(arrived, nbytes, arrived - start)]
        self._done.append(_Upload(start, arrived, nbytes, connection))
        return start, self._told()

    def _told(self) -> list[Carried]:
        told = []
        for together in _overlapping(self._done):
            end = max(u.end for u in together)
            connections = {u.connection for u in together}
            open_ones = [c for c, begun in self._under_way.values() if begun < end]
            if any(c not in connections or len(connections) > 1 for c in open_ones):
                continue
            self._done = [u for u in self._done if u not in together]
            start = min(u.start for u in together)
            self.busy_s += max(0.0, end - start)
            told.append(Carried(end, sum(u.nbytes for u in together), end - start))
        return told


def _overlapping(uploads: list[_Upload]) -> list[list[_Upload]]:
    """Those that overlap, together; those that only follow each other are apart."""
    groups: list[list[_Upload]] = []
    end = -inf
    for upload in sorted(uploads, key=lambda u: (u.start, u.end)):
        if upload.start < end:
            groups[-1].append(upload)
        else:
            groups.append([upload])
        end = max(end, upload.end)
    return groups
