"""Pings on a channel in virtual time, and when a request brings one along."""

from __future__ import annotations

import pytest

from splitpoint import wire
from splitpoint.errors import ServerError
from splitpoint.runtime.probe.ping import EVERY_S, PingSchedule, RoundTrip, ping, pings

NAN = float("nan")


class Channel:
    """Answers pings after `trip_s`, of which the server says that it had them for `there_s`."""

    timeout_s = 1.0

    def __init__(self, trip_s: float = 0.1, there_s: float = 0.02) -> None:
        self.now_s, self.trip_s, self.there_s = 5.0, trip_s, there_s
        self.welcome, self.sent = wire.Welcome(), 0

    def clock(self) -> float:
        return self.now_s

    def reserve(self) -> int:
        return self.sent + 1

    def send(self, id: int, packet: wire.Packet) -> None:
        self.sent += 1

    def abandon(self, id: int) -> None: ...

    def expect(self, id: int, answer: type, timeout_s: float | None = None) -> tuple[wire.Pong, wire.Frame]:
        if timeout_s is not None and timeout_s < self.trip_s:
            raise ServerError("late")
        self.now_s += self.trip_s
        return wire.Pong(0.0, 100.0, 100.0 + self.there_s), wire.Frame(0, 0, id, None, started=self.now_s, nbytes=40)


def test_a_round_trip_is_without_the_time_at_the_server() -> None:
    trip = ping(Channel(), None, lambda: 5.0)
    assert trip.seconds == pytest.approx(0.08)
    assert (trip.sent, trip.back, trip.down_nbytes) == (5.0, 5.1, 40)
    assert trip.up_nbytes >= wire.PREFIX_BYTES
    with pytest.raises(ServerError):
        ping(Channel(), 0.05, lambda: 5.0)


@pytest.mark.parametrize(("received", "answered"), [(100.0, 99.0), (NAN, NAN), (0.0, NAN), (0.0, 1e9)])
def test_no_claim_makes_a_round_trip_longer_than_it_was_or_negative(received: float, answered: float) -> None:
    assert 0.0 <= RoundTrip(1.0, received, answered, 1.5).seconds <= 0.5


@pytest.mark.parametrize(("seconds", "most", "least", "count"), [(0.35, 20, 1, 4), (0.0, 20, 3, 3), (9.0, 5, 1, 5)])
def test_pings_follow_each_other_until_the_time_is_spent(seconds: float, most: int, least: int, count: int) -> None:
    channel = Channel()
    assert len(list(pings(channel, seconds, most, channel.clock, least=least))) == count


def test_one_ping_a_second_comes_along_and_none_while_one_is_out() -> None:
    schedule = PingSchedule()
    assert schedule.due(10.0)
    assert not schedule.due(10.5)
    assert not schedule.due(11.5), "its answer is not here"
    assert not schedule.answered(9.0), "that is the answer to another one"
    assert schedule.answered(10.0)
    assert not schedule.answered(10.0), "once"
    assert schedule.due(11.5)
    assert schedule.due(22.0), "it was lost"


def test_a_clock_that_is_in_doubt_is_asked_at_once() -> None:
    schedule = PingSchedule()
    schedule.measured(10.0)
    assert not schedule.due(10.0 + EVERY_S)
    schedule.hurry()
    assert schedule.due(10.1)
