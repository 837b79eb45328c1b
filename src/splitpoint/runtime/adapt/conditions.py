"""What requests and probes show of a link, a device and a server → what a plan may count on now. Pure: no clock.

    every answer, head, probe, silence → Observer → Conditions → splitpoint.runtime.adapt.switch_policy, tasks' plans

It is the one belief of an edge that adapts and of a queue of tasks. Times are milliseconds, moments (`now_s`) seconds
on any one clock of the device. The link is `link_belief`'s. Device and server are as fast as profiled until several
runs agree on something else. What has not been told anew for a while is believed less and less: slowdowns drift back
to 1, queues to 0.
"""

from __future__ import annotations

from collections import deque
from math import exp, inf, log
from statistics import median
from typing import NamedTuple

import msgspec

from splitpoint.link import Link
from splitpoint.runtime.adapt.link_belief import FrameTime, LinkBelief
from splitpoint.runtime.probe.link_probe import Glimpse

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
#: Conditions are others when something has changed by more than this factor; round trips and queues, which may be
#: next to nothing, with so many milliseconds added.
_OTHER, _TRIP_MS = 1.25, 10.0


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

    def differs(self, other: Conditions) -> bool:
        """Whether what was planned for `other` should be looked at again: something has changed by a quarter."""
        a, b = self, other
        pairs = (
            (a.link.up_mbps, b.link.up_mbps), (a.link.down_mbps, b.link.down_mbps), (a.device, b.device),
            (a.server, b.server), (a.link.rtt_ms + a.queue_ms + _TRIP_MS, b.link.rtt_ms + b.queue_ms + _TRIP_MS),
        )  # fmt: skip
        return any(not 1 / _OTHER <= x / y <= _OTHER for x, y in pairs)


class Ran(NamedTuple):
    """A run of a segment: how long it took, and how long it and the whole model take by the profile, ms.

    One that was not `alone` was a run for several requests, or may have been: it says nothing of how long one takes.
    """

    took_ms: float
    profiled_ms: float
    whole_ms: float
    alone: bool = True

    @property
    def slowdown(self) -> float | None:
        """The logarithm of how many times slower than profiled it was; None where that says nothing.

        >>> f"{exp(Ran(30.0, 10.0, 20.0).slowdown):.1f}"
        '3.0'
        """
        if self.profiled_ms < _TELLING_MS or not 0 < self.took_ms < inf or self.whole_ms <= 0:
            return None
        return log(self.took_ms / self.profiled_ms) * min(1.0, self.profiled_ms / self.whole_ms / _TELLING_SHARE)


class Observer:
    """Collects what is seen; `conditions` says what follows. `link` and the profiles are believed until then.

    >>> observer = Observer(Link(50, 50, 10))
    >>> observer.overdue(2.0, up_nbytes=150_000, age_ms=250.0)      # 150 kB should have taken 30 ms
    >>> observer.conditions(2.0).link.up_mbps < 6
    True

    `measured`: the link was measured just now. `hasty`: a single frame may change what is believed of it, as for an
    edge, whose next request suffers if it is not; a queue is planned for the usual one. One thread at a time.
    """

    def __init__(self, link: Link, *, measured: bool = False, hasty: bool = True) -> None:
        self._link = LinkBelief(link, measured=measured, hasty=hasty)
        self._device = _Recent(_DEVICE_LIFE_S, least=_LEAST_RUNS)
        self._server = _Recent(_SERVER_LIFE_S, least=_LEAST_RUNS, sure=not hasty)
        self._queue, self._busy = (_Recent(_QUEUE_LIFE_S, _QUEUE_WINDOW_S) for _ in range(2))
        self._beside, self._failing = _Recent(_SERVER_LIFE_S), _Recent(_FAILING_LIFE_S)
        self._there_ms = _Recent(_SERVER_LIFE_S)
        self._reachable = True
        self.uplink = self._link.uplink
        """Where several connections share the link: is told of each request before (`SharedUplink.sent`)."""

    def answered(
        self,
        now_s: float,
        up: FrameTime,
        down: FrameTime,
        tail: Ran,
        queue_ms: float,
        load_queue_ms: float | None = None,
        utilisation: float = 0.0,
        rtt_ms: float = 0.0,
        *,
        remote_ms: float = 0.0,
        decode_ms: float = 0.0,
        request: int | None = None,
    ) -> float:
        """The server's answer, complete at `now_s`: whole frames and how long each was on its way, and its tail's run.

        `queue_ms` is this request's own wait for a worker, `load_queue_ms` and `utilisation` what the server says of
        its load. `rtt_ms` is the shortest recent ping (0: not known). `remote_ms` is the time from handing the
        request over until the answer was here, `decode_ms` what of it the server took to decode; without them
        the stages above are all there was. `request` is the one that `uplink` was told of, if it was.

        Returns how long the request waited on the link for those before it, ms.
        """
        known_ms = up.ms + queue_ms + tail.took_ms + down.ms
        remote_ms = max(remote_ms, known_ms)
        waited_ms = self._link.observe(now_s, up, down, rtt_ms, remote_ms, request)
        if tail.alone:
            self._server.add(now_s, tail.slowdown)
        # The server's account is smooth and late, the request's own is neither.
        self._queue.add(now_s, queue_ms if load_queue_ms is None else (queue_ms + load_queue_ms) / 2)
        self._busy.add(now_s, utilisation)
        self._beside.add(now_s, max(0.0, remote_ms - known_ms - decode_ms))
        self._there_ms.add(now_s, remote_ms - up.ms - down.ms)
        self._failing.add(now_s, 0.0)
        return waited_ms

    def computed(self, now_s: float, head: Ran) -> None:
        """A head (or the whole model) ran on the device."""
        self._device.add(now_s, head.slowdown)

    def overdue(self, now_s: float, up_nbytes: float, age_ms: float) -> None:
        """A request of `up_nbytes`, handed over `age_ms` ago, should have been answered by now and is not."""
        there_ms, link = self._there_ms.at(now_s), self._link.at(now_s)[0]
        if self._queue.at(now_s) > link.up_ms(up_nbytes):
            there_ms = inf  # where the server's queue is longer than the upload, it is the likelier reason
        self._link.wait_for(now_s, up_nbytes, age_ms, there_ms)

    def probed(self, now_s: float, seen: Glimpse) -> None:
        """A probe that is no request was back at `now_s`."""
        up, down = FrameTime(seen.up_nbytes, seen.up_ms), FrameTime(seen.down_nbytes, seen.down_ms)
        self._link.observe(now_s, up, down, seen.rtt_ms, up.ms + down.ms)

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


class _Recent:
    """The median of the last few values; it fades to 0 when none is told any more, and is 0 before any.

    Where there are fewer than `least`, the missing ones count as 0; or, if it is to be `sure`, all of them do.
    """

    def __init__(self, life_s: float, window_s: float = _WINDOW_S, least: int = 1, *, sure: bool = False) -> None:
        self._life_s, self._window_s, self._least, self._sure = life_s, window_s, least, sure
        self._values: deque[tuple[float, float]] = deque(maxlen=_COUNT)

    def add(self, now_s: float, value: float | None) -> None:
        if value is None:
            return
        while len(self._values) >= self._least and self._values[0][0] < now_s - self._window_s:
            self._values.popleft()
        self._values.append((now_s, value))

    def at(self, now_s: float) -> float:
        values = [value for _, value in self._values]
        missing = self._least - len(values)
        if not values or (missing > 0 and self._sure):
            return 0.0
        age_s = max(0.0, now_s - self._values[-1][0] - _FRESH_S)
        kept: float = 0.5 ** min(age_s / self._life_s, 40.0)
        return kept * median([*[0.0] * missing, *values])
