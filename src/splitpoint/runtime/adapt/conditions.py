"""What requests and probes show of a link, a server and a device → what a plan may count on now. Pure: no clock.

    every answer, head, probe, silence → Observer → Conditions → splitpoint.runtime.adapt.switch_policy

Times are milliseconds, moments (`now_s`) seconds on any one clock of the device. Nothing is believed because it
happened once, with two exceptions that cannot be otherwise:

* A frame may be late for many reasons, but it is early only because the link is fast. So a link is as fast as its
  fastest frame, at once; that it has become slower takes `LinkEstimator` three frames.
* A request that should have been answered long ago says how slow the link is at best, more so the longer the silence.
  Half of that is believed while it lasts. The late answer then says by itself whether it was the link.

On a ramp `LinkEstimator` may take the trend for a cost beside the bytes. Where it believes in a faster link than most
frames allow it is begun anew.

What nobody has told anew for a while is believed less and less: slowdowns drift back to 1, queues to 0.
"""

from __future__ import annotations

from collections import deque
from itertools import pairwise
from math import exp, inf, log, sqrt
from statistics import median
from typing import NamedTuple

import msgspec

from splitpoint.graph import Cut
from splitpoint.link import Link
from splitpoint.link.estimator import LinkEstimator
from splitpoint.profile.profiles import Profile, Stat

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
#: The median of so many values, none older than this (but the newest).
_COUNT, _WINDOW_S = 5, 10.0
#: A machine is as fast as profiled until so many runs, two of them alike, say otherwise: the first one is always slow.
_LEAST_RUNS = 3
_QUEUE_WINDOW_S = 5.0
#: A value is as good as new for so long; then what is left of it halves every so many seconds.
_FRESH_S = 5.0
_DEVICE_LIFE_S, _SERVER_LIFE_S, _QUEUE_LIFE_S, _FAILING_LIFE_S = 30.0, 20.0, 3.0, 5.0
#: A segment with this share of the whole model says all about a machine's speed, a smaller one less: what it takes
#: beside computing (waking up, cold caches) is not in proportion. Shorter ones (ms) say nothing.
_TELLING_SHARE, _TELLING_MS = 0.25, 0.05


class Conditions(msgspec.Struct, frozen=True, kw_only=True):
    """What a plan may count on now. `device` and `server` are how many times slower than profiled they compute;
    `queue_ms` is the wait for a free worker, `overhead_ms` what else a remote request costs beyond a plan's stages.
    `utilisation` is the busy share of the server's workers (0…1), as it says; `failing` the share of recent remote
    requests that failed, as a majority (0 or 1, then fading).
    """

    link: Link
    device: float = 1.0
    server: float = 1.0
    queue_ms: float = 0.0
    overhead_ms: float = 0.0
    utilisation: float = 0.0
    failing: float = 0.0
    reachable: bool = True


class Observer:
    """Collects what is seen; `conditions` says what follows. `link` and the profiles are believed until then.

    >>> observer = Observer(Link(50, 50, 10), edge, cloud)
    >>> observer.answered(1.0, cut, 150_000, 29.0, 4_000, 5.6, tail_ms=12.0, queue_ms=0.0)
    >>> observer.overdue(2.0, up_nbytes=150_000, age_ms=250.0)      # 150 kB should have taken 30 ms
    >>> observer.conditions(2.0).link.up_mbps < 6
    True

    One thread at a time.
    """

    def __init__(self, link: Link, edge: Profile, cloud: Profile) -> None:
        self._edge, self._cloud = edge, cloud
        self._link = _LinkWatch(link)
        self._device = _Recent(_DEVICE_LIFE_S, least=_LEAST_RUNS)
        self._server = _Recent(_SERVER_LIFE_S, least=_LEAST_RUNS)
        self._queue, self._busy = (_Recent(_QUEUE_LIFE_S, _QUEUE_WINDOW_S) for _ in range(2))
        self._beside, self._failing = _Recent(_SERVER_LIFE_S), _Recent(_FAILING_LIFE_S)
        self._there_ms = _Recent(_SERVER_LIFE_S)
        self._reachable = True

    def answered(
        self,
        now_s: float,
        cut: Cut,
        up_nbytes: float,
        up_ms: float,
        down_nbytes: float,
        down_ms: float,
        tail_ms: float,
        queue_ms: float,
        load_queue_ms: float | None = None,
        utilisation: float = 0.0,
        rtt_ms: float = 0.0,
        *,
        remote_ms: float = 0.0,
        decode_ms: float = 0.0,
    ) -> None:
        """The server's answer for `cut`, complete at `now_s`: whole frames and how long each was on its way.

        `queue_ms` is this request's own wait for a worker, `load_queue_ms` and `utilisation` what the server says of
        its load. `rtt_ms` is the shortest recent ping (0: not known). `remote_ms` is the time from handing the
        request over until the answer was here, `decode_ms` what of it the server took to decode; without them
        the stages above are all there was.
        """
        known_ms = up_ms + queue_ms + tail_ms + down_ms
        remote_ms = max(remote_ms, known_ms)
        self._link.observe(now_s, _Way(up_nbytes, up_ms), _Way(down_nbytes, down_ms), rtt_ms, remote_ms)
        self._server.add(now_s, _slowdown(tail_ms, self._cloud.tail(cut), self._cloud.whole))
        # The server's account is smooth and late, the request's own is neither.
        self._queue.add(now_s, queue_ms if load_queue_ms is None else (queue_ms + load_queue_ms) / 2)
        self._busy.add(now_s, utilisation)
        self._beside.add(now_s, max(0.0, remote_ms - known_ms - decode_ms))
        self._there_ms.add(now_s, remote_ms - up_ms - down_ms)
        self._failing.add(now_s, 0.0)

    def computed(self, now_s: float, cut: Cut, head_ms: float) -> None:
        """The head of `cut` (of ``output``: the whole model) ran on the device."""
        self._device.add(now_s, _slowdown(head_ms, self._edge.head(cut), self._edge.whole))

    def overdue(self, now_s: float, up_nbytes: float, age_ms: float) -> None:
        """A request of `up_nbytes`, handed over `age_ms` ago, should have been answered by now and is not."""
        there_ms, link = self._there_ms.at(now_s), self._link.at(now_s)[0]
        if self._queue.at(now_s) > link.up_ms(up_nbytes):
            there_ms = inf  # where the server's queue is longer than the upload, it is the likelier reason
        self._link.wait_for(now_s, up_nbytes, age_ms, there_ms)

    def probed(
        self,
        now_s: float,
        up_nbytes: float,
        up_ms: float,
        down_nbytes: float = 0.0,
        down_ms: float = 0.0,
        rtt_ms: float = 0.0,
    ) -> None:
        """A probe that is no request was back at `now_s`: its frames, and how long each was on its way."""
        self._link.observe(now_s, _Way(up_nbytes, up_ms), _Way(down_nbytes, down_ms), rtt_ms, up_ms + down_ms)

    def pinged(self, now_s: float, rtt_ms: float) -> None:
        """An empty message took `rtt_ms` there and back, without the time at the server."""
        self._link.ping(now_s, rtt_ms)

    def failed(self, now_s: float) -> None:
        """A request's remote part failed: the server was busy, wrong, or went away."""
        self._failing.add(now_s, 1.0)
        self._link.give_up()

    def reachable(self, now_s: float, reachable: bool) -> None:
        """Whether requests go to the server at all. While they do not, its failures are not told anew."""
        if reachable != self._reachable:
            self._link.give_up()
        self._reachable = reachable

    def conditions(self, now_s: float) -> Conditions:
        """What is believed at `now_s`."""
        link, constant_ms = self._link.at(now_s)
        return Conditions(
            link=link,
            device=exp(self._device.at(now_s)),
            server=exp(self._server.at(now_s)),
            queue_ms=self._queue.at(now_s),
            overhead_ms=max(0.0, constant_ms + self._beside.at(now_s)),
            utilisation=self._busy.at(now_s),
            failing=self._failing.at(now_s),
            reachable=self._reachable,
        )


def _slowdown(measured_ms: float, profiled: Stat, whole: Stat) -> float | None:
    """The logarithm of how many times slower than profiled a segment ran; None where that says nothing."""
    if profiled.median < _TELLING_MS or not 0 < measured_ms < inf or whole.median <= 0:
        return None
    return log(measured_ms / profiled.median) * min(1.0, profiled.median / whole.median / _TELLING_SHARE)


class _Recent:
    """The median of the last few values; it fades to 0 when none is told any more, and is 0 before any. Where there
    are fewer than `least`, the missing ones count as 0."""

    def __init__(self, life_s: float, window_s: float = _WINDOW_S, least: int = 1) -> None:
        self._life_s, self._window_s, self._least = life_s, window_s, least
        self._values: deque[tuple[float, float]] = deque(maxlen=_COUNT)

    def add(self, now_s: float, value: float | None) -> None:
        """A value as of `now_s`; None is none."""
        if value is None:
            return
        while len(self._values) >= self._least and self._values[0][0] < now_s - self._window_s:
            self._values.popleft()
        self._values.append((now_s, value))

    def at(self, now_s: float) -> float:
        if not self._values:
            return 0.0
        age_s = max(0.0, now_s - self._values[-1][0] - _FRESH_S)
        kept: float = 0.5 ** min(age_s / self._life_s, 40.0)
        missing = [0.0] * (self._least - len(self._values))
        return kept * median([*missing, *(value for _, value in self._values)])


class _Way(NamedTuple):
    """A frame one way: its bytes, and the milliseconds until the last of them was there."""

    nbytes: float
    ms: float


class _Bounds(NamedTuple):
    """What a frame shows of a rate, Mbit/s: at least, if it cost nothing beside its bytes, at most."""

    low: float
    middle: float
    high: float


class _Waiting(NamedTuple):
    """A request that has not been answered in time: when it was handed over, when the link was free for it, and for
    how long it would have been elsewhere."""

    handed_s: float
    began_s: float
    nbytes: float
    elsewhere_ms: float

    def likely_mbps(self, now_s: float) -> float:
        """The uplink, if half of the frame is through by now: what has taken so long may take as long again.

        Where nothing is known of how long something lasts, its age is the median of what is left (Gott, Nature 1993).
        The rate that would just have had it answered by now is only the best that the link can still be: who planned
        for that one switched to a cut between, and, a dwell later, once more.
        """
        on_link_ms = (now_s - self.began_s) * 1e3 - self.elsewhere_ms
        return max(self.nbytes * 8e-3 / (2 * on_link_ms), _LEAST_MBPS) if on_link_ms > 0 else inf


class _LinkWatch:
    """A `LinkEstimator` that is begun anew where what it believes cannot be."""

    def __init__(self, link: Link) -> None:
        self._estimator = LinkEstimator(link, _HALF_LIFE_S)
        self._pings: deque[tuple[float, float]] = deque(maxlen=_PINGS)
        self._waiting: _Waiting | None = None
        #: When the last frame each way was there: the next one cannot have begun to move before.
        self._arrived_s = self._back_s = -inf
        self._shown: deque[tuple[float, tuple[_Bounds, _Bounds]]] = deque(maxlen=_FRAMES)

    def at(self, now_s: float) -> tuple[Link, float]:
        """(the link, what a request costs beyond it in ms)."""
        found = self._estimator.estimate(now_s)
        link = found.link
        if self._waiting is not None and (likely := self._waiting.likely_mbps(now_s)) < link.up_mbps:
            link = msgspec.structs.replace(link, up_mbps=likely)
        return link, found.overhead_ms

    def ping(self, now_s: float, rtt_ms: float) -> None:
        if rtt_ms > 0:
            self._pings.append((now_s, rtt_ms))
            self._estimator.ping(now_s, rtt_ms)

    def wait_for(self, now_s: float, nbytes: float, age_ms: float, there_ms: float) -> None:
        """Nothing came for a request of `nbytes` for `age_ms`; the server usually has it for `there_ms`."""
        if self._waiting is None and nbytes > 0 and age_ms > 0:
            # Later ones wait for this one: they say nothing of their own.
            handed_s, rtt_ms = now_s - age_ms * 1e-3, self._estimator.link.rtt_ms
            began_s = max(handed_s, self._arrived_s - rtt_ms / 2e3)
            self._waiting = _Waiting(handed_s, began_s, nbytes, rtt_ms + there_ms)

    def give_up(self) -> None:
        """There will be no answer to what was waited for, or it says nothing of the link."""
        self._waiting = None

    def observe(self, now_s: float, up: _Way, down: _Way, rtt_ms: float, remote_ms: float) -> None:
        """Two frames there and back, complete at `now_s`, `remote_ms` after the first was handed over."""
        self.ping(now_s, rtt_ms)
        handed_s = now_s - remote_ms * 1e-3
        up, down = self._alone(now_s, handed_s, up, down)
        believed = self._estimator.link
        slower = self._slower(handed_s, up, believed)
        if slower is not None:
            self._begin_anew(msgspec.structs.replace(believed, up_mbps=slower))
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

    def _alone(self, now_s: float, handed_s: float, up: _Way, down: _Way) -> tuple[_Way, _Way]:
        """The same frames without the time that they waited for those before them on the link (a pipelined stream)."""
        half_s = self._estimator.link.rtt_ms / 2e3
        arrived_s, started_s = handed_s + up.ms * 1e-3, now_s - down.ms * 1e-3
        if self._arrived_s <= arrived_s:
            up = _Way(up.nbytes, up.ms - max(0.0, self._arrived_s - half_s - handed_s) * 1e3)
            self._arrived_s = arrived_s
        if self._back_s <= now_s:
            down = _Way(down.nbytes, down.ms - max(0.0, self._back_s - half_s - started_s) * 1e3)
            self._back_s = now_s
        return up, down

    def _slower(self, handed_s: float, up: _Way, believed: Link) -> float | None:
        """The uplink by an answer that was waited for, where that is another one than `believed`."""
        waiting = self._waiting
        if waiting is None or handed_s < waiting.handed_s - _SAME_S:
            return None
        self._waiting = None
        if up.nbytes != waiting.nbytes or handed_s > waiting.handed_s + _SAME_S:
            return None  # of a later request: it may have waited itself
        ms = max(up.ms - believed.rtt_ms / 2, 1e-3)
        shown = max(up.nbytes * 8e-3 / ms, _LEAST_MBPS)
        return shown if shown * _OTHER < believed.up_mbps else None

    def _bounds(self, up: _Way, down: _Way) -> tuple[_Bounds, _Bounds]:
        """Between which rates up and down lie by these frames.

        Both ways together, because the error of the clocks' offset is in each, one against the other.
        """
        link = self._estimator.link
        slack_ms = max(_SLACK_MS, _SLACK_TRIPS * link.rtt_ms)
        beside_ms = max(_BESIDE_MS, _BESIDE_TRIPS * link.rtt_ms)
        spent_ms = up.ms + down.ms
        # Less than a round trip: the round trip is not what it was, and all that is sure is the sum.
        net_ms = max(0.0, spent_ms - link.rtt_ms) if spent_ms > link.rtt_ms - slack_ms else spent_ms

        def bounds(way: _Way, other_ms: float) -> _Bounds:
            if way.nbytes < _TELLING_NBYTES:
                return _Bounds(0.0, inf, inf)
            low = way.nbytes * 8e-3 / (net_ms + slack_ms)
            own_ms = min(net_ms - other_ms, way.ms - link.rtt_ms / 2)  # the other way may be slower than believed
            if own_ms <= slack_ms:
                return _Bounds(low, inf, inf)
            middle = way.nbytes * 8e-3 / own_ms
            return _Bounds(low, middle, middle * own_ms / max(own_ms - beside_ms, own_ms / _OTHER))

        return bounds(up, link.down_ms(down.nbytes)), bounds(down, link.up_ms(up.nbytes))

    def _correct(self, now: tuple[_Bounds, _Bounds], row: int) -> None:
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
