"""Measures the link to a server, by sending over it: all of it in under 3 s, whatever the link (`measure_link`); or
whether an idle link is still what it was, with a few bytes (`glimpse`).

The round trip comes from pings. Bandwidth comes from *trains*: some PROBE frames handed over at once, whose bodies (one
way) or answers (the other way) arrive one behind the other. When the last byte of each was there is known on one
clock, the server's or ours, and only differences are used: the round trip, the clocks' offset and what a frame costs
beside its bytes cancel. Of a train only the second half counts: in the first, TCP's window may still be growing,
and a shaper may let a burst pass. Trains grow until one takes long enough, or the budget is spent.

What is measured is what an application gets through. Where the wire is faster than both ends' processors (loopback,
10 Gbit/s), that is their speed, and so it will be for requests.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from math import isfinite
from time import perf_counter
from typing import NamedTuple

import msgspec

from splitpoint import wire
from splitpoint.errors import ProtocolError, ServerError, SplitpointError, UsageError
from splitpoint.link import Link
from splitpoint.runtime.probe.ping import Asks, ping, pings
from splitpoint.wire import Frame, Kind, Packet

#: Frames of a train; those of its second half are measured.
_FRAMES = 16
_HALF = _FRAMES // 2
#: The first train's frames. Small: on 0.13 Mbit/s a train of them takes 0.1 s.
_FIRST_NBYTES = 64
_GROWTH = 8
#: The most that a PROBE has as body, or asks for, whatever a server allows.
MOST_NBYTES = 1 << 20
#: What a PROBE or PROBED frame has beside its body, at most, and a PING and a PONG.
_HEAD_NBYTES = 64
#: Shares of the budget: for pings, and of what is left for one direction, the length of a train that is long enough.
_PINGS_SHARE = 0.2
_ENOUGH_SHARE = 0.5
_PINGS, _PINGS_LEAST = 20, 3
#: A train is not begun if it would take longer than what is left, or much longer than expected.
_SLACK = 1.25
#: More trains of the largest size, if that one was over soon.
_REPEATS = 3


class LinkMeasurement(msgspec.Struct, frozen=True):
    """A link as it was measured: in how many seconds, with how many pings, and with how many bytes each way."""

    link: Link
    seconds: float
    pings: int
    up_nbytes: int
    down_nbytes: int


class _Train(NamedTuple):
    """What the measured half of a train had in bytes and seconds, and what all of it had."""

    nbytes: int
    seconds: float
    all_nbytes: int
    all_seconds: float


def noise(nbytes: int) -> memoryview:
    """`nbytes`, at most `MOST_NBYTES`, that no modem or tunnel on the way can compress. The same ones each time."""
    return _noise()[:nbytes]


@cache
def _noise() -> memoryview:
    return memoryview(os.urandom(MOST_NBYTES))


def check_budget(budget_s: float) -> None:
    """UsageError unless a link can be measured in so many seconds."""
    if not 0.2 <= budget_s <= 600:
        raise UsageError(f"a link is measured in 0.2 to 600 seconds, not {budget_s:g}")


def measure_link(
    channel: Asks, budget_s: float = 3.0, *, name: str = "", clock: Callable[[], float] = perf_counter
) -> LinkMeasurement:
    """The link that `channel` goes over, measured in at most about `budget_s`, and what that took.

    It is filled with traffic meanwhile, and other requests on it are slowed down, as they slow down this. `clock` is
    the one that frames are stamped with. ServerError if the server ends, or answers too late, or knows no PROBE.
    """
    check_budget(budget_s)
    if channel.welcome.version < (1, 1):
        major, minor = channel.welcome.version
        raise ServerError(f"the server speaks version {major}.{minor}, which cannot be probed: update splitpoint there")
    try:
        return _Probe(channel, budget_s, clock).run(name)
    except ProtocolError:
        raise
    except SplitpointError as exc:
        raise ServerError(f"the link could not be measured: {exc}") from exc


class _Probe:
    def __init__(self, channel: Asks, budget_s: float, clock: Callable[[], float]) -> None:
        self._channel, self._now = channel, clock
        self._budget_s = budget_s
        self._began = clock()
        #: An answer that takes long is late once: not every one of a hundred may take as long as one may.
        self._end = self._began + max(channel.timeout_s, 2 * budget_s) + 2 * budget_s
        told = channel.welcome.limits.get("blob_chunk", MOST_NBYTES)
        self._most = min(MOST_NBYTES, told - _HEAD_NBYTES)
        self._trip_s = 0.0
        self._sent = self._received = 0

    def run(self, name: str) -> LinkMeasurement:
        ping_s = self._budget_s * _PINGS_SHARE
        trips = sorted(
            pings(self._channel, ping_s, _PINGS, self._now, least=_PINGS_LEAST, timeout_s=self._left_s),
            key=lambda trip: trip.seconds,
        )
        self._trip_s = trips[0].seconds
        end = self._began + self._budget_s
        up = self._rate(self._up_train, (self._now() + end) / 2)
        down = self._rate(self._down_train, end)
        # A ping has bytes too: 68 both ways are 4 ms at 0.13 Mbit/s.
        bytes_s = trips[0].up_nbytes / up + trips[0].down_nbytes / down
        jitter_s = trips[round(0.9 * (len(trips) - 1))].seconds - self._trip_s
        link = Link(up * 8e-6, down * 8e-6, max(0.0, self._trip_s - bytes_s) * 1e3, jitter_s * 1e3, name)
        return LinkMeasurement(link, self._now() - self._began, len(trips), self._sent, self._received)

    # --- bandwidth ----------------------------------------------------------------------------------------------

    def _rate(self, run: Callable[[int], _Train], end: float) -> float:
        """Bytes a second one way: trains of growing size until one is long enough, or `end`."""
        enough_s = (end - self._now()) * _ENOUGH_SHARE
        nbytes, trains = min(_FIRST_NBYTES, self._most), list[_Train]()
        while True:
            train = run(nbytes)
            trains.append(train)
            rate = train.nbytes / train.seconds
            largest = [t for t in trains if t.all_nbytes >= train.all_nbytes]
            if train.all_seconds >= 0.7 * enough_s or len(largest) >= _REPEATS:
                break
            left_s = (end - self._now()) / _SLACK - self._trip_s
            fits = int(rate * min(left_s, enough_s) / _FRAMES) - _HEAD_NBYTES
            larger = min(nbytes * _GROWTH, self._most, fits)
            if larger < nbytes or (larger < 1.5 * nbytes and nbytes < self._most):
                break
            nbytes = larger
        # Of about the same length as the longest, so that a short one with its bursts and gaps does not count.
        longest = max(t.seconds for t in trains)
        counted = [t for t in trains if t.seconds >= longest / 2]
        return sum(t.nbytes for t in counted) / sum(t.seconds for t in counted)

    def _up_train(self, nbytes: int) -> _Train:
        ids, size = self._send(wire.Probe(), (noise(nbytes),), nbytes)
        return _measure([probed.received_s for probed, _ in self._answers(ids)], size)

    def _down_train(self, nbytes: int) -> _Train:
        ids, _ = self._send(wire.Probe(nbytes), (), 0)
        times, size = [], 0
        for _, frame in self._answers(ids):
            if sum(a.nbytes for a in frame.tensors) != nbytes:
                raise ProtocolError(f"the server answered a PROBE for {nbytes} bytes with another number of them")
            times.append(frame.received)
            size = frame.nbytes
        return _measure(times, size)

    def _send(self, header: wire.Probe, body: Sequence[memoryview], nbytes: int) -> tuple[list[int], int]:
        """Hands a whole train over at once: (its ids, bytes of a frame)."""
        ids = [self._channel.reserve(most=header.reply_nbytes) for _ in range(_FRAMES)]
        packets = [wire.encode(Kind.PROBE, id, header, body, nbytes) for id in ids]
        together = Packet([b for p in packets for b in p.buffers], sum(p.nbytes for p in packets))
        self._sent += together.nbytes
        try:
            self._channel.send(ids[0], together)
        except BaseException:
            self._forget(ids)
            raise
        return ids, packets[0].nbytes

    def _answers(self, ids: Sequence[int]) -> Iterator[tuple[wire.Probed, Frame]]:
        try:
            for id in ids:
                probed, frame = self._channel.expect(id, wire.Probed, self._left_s())
                self._received += frame.nbytes
                yield probed, frame
        except BaseException:
            self._forget(ids)
            raise

    def _left_s(self) -> float:
        return max(1e-3, self._end - self._now())

    def _forget(self, ids: Sequence[int]) -> None:
        for id in ids:  # or the answers that still come would be kept for someone who never asks
            self._channel.abandon(id)


def _measure(times: Sequence[float], nbytes: int) -> _Train:
    """The train whose frames of `nbytes` were complete at `times`."""
    if not all(isfinite(t) for t in times) or list(times) != sorted(times):
        raise ProtocolError("the server's clock runs backwards: its times of a PROBE cannot be right")
    half, whole = times[-1] - times[_HALF - 1], times[-1] - times[0]
    # All of it may have been there at once: then it took no time that a clock shows.
    return _Train((_FRAMES - _HALF) * nbytes, max(half, 1e-7), _FRAMES * nbytes, whole)


# --- a look at an idle link -------------------------------------------------------------------------------------------

#: What a PING and its PONG, and a PROBE and its PROBED, have beside a body, at most.
_OVERHEAD_NBYTES = 256


class Glimpse(NamedTuple):
    """What a probe showed: a round trip, and how long a frame was on its way up and its answer on its way back. As in a
    trace, half of the round trip is in each. Their sum is sure; each alone is as sure as the clocks' offset."""

    rtt_ms: float
    up_nbytes: int
    up_ms: float
    down_nbytes: int
    down_ms: float


def glimpse(
    channel: Asks, offset_s: Callable[[], float], nbytes: int, timeout_s: float,
    *, clock: Callable[[], float] = perf_counter,
) -> Glimpse | None:  # fmt: skip
    """What `nbytes` that are sent over an idle `channel` show of the link; None if no answer came in `timeout_s`.

    `offset_s` is the server's clock minus ours, asked after the ping. ProtocolError for answers that cannot be.
    """
    try:
        trip = ping(channel, timeout_s, clock)
        id, sent = channel.reserve(), clock()
        body = max(1, nbytes - _OVERHEAD_NBYTES)
        packet = wire.encode(Kind.PROBE, id, wire.Probe(), (noise(body),), body)
        channel.send(id, packet)
        probed, frame = channel.expect(id, wire.Probed, timeout_s)
    except ServerError as exc:
        if type(exc) is ServerError:  # late, or gone: the next request finds that out
            return None
        raise
    back_s = frame.started - sent - max(0.0, probed.sent_s - probed.received_s)
    up_s = probed.received_s - offset_s() - sent
    if not all(isfinite(s) for s in (back_s, up_s)):
        return None
    # Where the offset is off, the frame's own round trip bounds what it can have taken.
    both_s = max(0.0, back_s)
    up_s = min(max(0.0, up_s), both_s)
    return Glimpse(trip.seconds * 1e3, packet.nbytes, up_s * 1e3, frame.nbytes, (both_s - up_s) * 1e3)
