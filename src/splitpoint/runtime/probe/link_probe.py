"""Measures the link to a server, by sending over it: all of it in under 3 s, whatever the link (`measure_link`); or
whether an idle link is still what it was, with a few bytes (`glimpse`).

The round trip comes from pings. Bandwidth comes from *trains*: some PROBE frames handed over at once, whose bodies (one
way) or answers (the other way) arrive one behind the other. When the last byte of each was there is known on one
clock, the server's or ours, and only differences are used: the round trip, the clocks' offset and what a frame costs
beside its bytes cancel. Of a train only the second half counts: in the first, TCP's window may still be growing,
and a shaper may let a burst pass. Trains grow until one takes long enough, or the budget is spent.

Where most of a train's time is one gap, something else may have stood still than the link: a process without a core, or
TCP, which waits 0.2 s to send again what a full receiver threw away. So that train is sent again. If the gap is gone
then, the train that had it counts for nothing, nor does its time; a link that is slow is so both times.

What is measured is what an application gets through. Where the wire is faster than both ends' processors (loopback,
10 Gbit/s), that is their speed, and so it will be for requests.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from itertools import pairwise
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
#: More trains of the largest size, if that one was over soon; and of one size where something stands still.
_REPEATS = 3
#: Where things stand still, measuring takes so many budgets at most.
_PATIENCE = 4
#: The share of a train's seconds that is too much for one gap. Of frames that come evenly it is a fifteenth.
_GAP_SHARE = 1 / 3


class LinkMeasurement(msgspec.Struct, frozen=True):
    """A link as it was measured: in how many seconds, with how many pings, and with how many bytes each way."""

    link: Link
    seconds: float
    pings: int
    up_nbytes: int
    down_nbytes: int


class _Train(NamedTuple):
    """What the measured half of a train had in bytes and seconds, and what all of it had; its longest gap."""

    nbytes: int
    seconds: float
    all_nbytes: int
    all_seconds: float
    gap_s: float

    @property
    def rate(self) -> float:
        return self.nbytes / self.seconds


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
    """The link that `channel` goes over, measured in at most about `budget_s` (up to four times that where something
    beside the link stands still), and what that took.

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
        left_s = self._budget_s - len(trips) * self._trip_s  # where they took longer, something stood still
        up, spent_s = self._rate(self._up_train, left_s / 2)
        down, _ = self._rate(self._down_train, left_s - spent_s)
        # A ping has bytes too: 68 both ways are 4 ms at 0.13 Mbit/s.
        bytes_s = trips[0].up_nbytes / up + trips[0].down_nbytes / down
        jitter_s = trips[round(0.9 * (len(trips) - 1))].seconds - self._trip_s
        link = Link(up * 8e-6, down * 8e-6, max(0.0, self._trip_s - bytes_s) * 1e3, jitter_s * 1e3, name)
        return LinkMeasurement(link, self._now() - self._began, len(trips), self._sent, self._received)

    # --- bandwidth ----------------------------------------------------------------------------------------------

    def _rate(self, run: Callable[[int], _Train], budget_s: float) -> tuple[float, float]:
        """Bytes a second one way, by trains of growing size until one is long enough or `budget_s` is spent; and how
        much of that the link was busy for."""
        enough_s = budget_s * _ENOUGH_SHARE
        nbytes, trains, spent_s = min(_FIRST_NBYTES, self._most), list[_Train](), 0.0
        while True:
            alike = self._alike(run, nbytes, enough_s / (2 * _GROWTH), trains[-1].rate / 2 if trains else 0.0)
            train = alike[0]
            moved = [t for t in alike if t.all_seconds - train.all_seconds <= t.gap_s / 2]
            trains += reversed(moved)
            spent_s += sum(self._trip_s + t.all_seconds for t in moved)
            late_s = max(0.0, self._now() - self._began - _PATIENCE * self._budget_s)
            left_s = (budget_s - spent_s - late_s) / _SLACK - self._trip_s
            fits = int(train.rate * min(left_s, enough_s) / _FRAMES) - _HEAD_NBYTES
            larger = min(nbytes * _GROWTH, self._most, fits)
            often = sum(t.all_nbytes >= train.all_nbytes for t in trains) >= _REPEATS
            grown = larger >= 1.5 * nbytes or (larger >= nbytes == self._most and not often)
            if train.all_seconds >= 0.7 * enough_s or not grown:
                break
            nbytes = larger
        # Of about the same length as the longest, so that a short one with its bursts and gaps does not count.
        longest = max(t.seconds for t in trains)
        counted = [t for t in trains if t.seconds >= longest / 2]
        return sum(t.nbytes for t in counted) / sum(t.seconds for t in counted), spent_s

    def _alike(self, run: Callable[[int], _Train], nbytes: int, long_s: float, slow: float) -> list[_Train]:
        """A train, the quickest first: more than one where something may have stood still, and that matters, as it
        took `long_s` or was at most as fast as `slow`."""
        trains = [run(nbytes)]
        while len(trains) < _REPEATS and trains[0].gap_s > _GAP_SHARE * trains[0].all_seconds:
            if trains[0].all_seconds < long_s and trains[0].rate > slow:
                break
            trains.append(run(nbytes))
            trains.sort(key=lambda train: train.all_seconds)
        return trains

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
    gap_s = max(b - a for a, b in pairwise(times))
    # All of it may have been there at once: then it took no time that a clock shows.
    return _Train((_FRAMES - _HALF) * nbytes, max(half, 1e-7), _FRAMES * nbytes, whole, gap_s)


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
