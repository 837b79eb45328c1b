"""The server's clock on the device's, in virtual time: the error that is claimed is never less than the true one."""

from __future__ import annotations

import struct
from collections.abc import Callable

import pytest

from splitpoint.runtime.probe.server_clock import ServerClock
from splitpoint.runtime.result import Marks, Result
from splitpoint.wire import Times


class Pair:
    """A device and a server, each with its clock: seconds of the true time → what the clock says."""

    def __init__(self, device: Callable[[float], float], server: Callable[[float], float]) -> None:
        self.device, self.server = device, server
        self.clock = ServerClock()

    def truth(self, at: float) -> float:
        return self.server(at) - self.device(at)

    def ping(self, at: float, up: float = 0.004, down: float = 0.005) -> None:
        arrived = at + up
        self.clock.add(
            self.device(at), self.server(arrived), self.server(arrived + 1e-4), self.device(arrived + 1e-4 + down)
        )

    def answer(self, at: float, up: float = 0.020, spent: float = 0.010, down: float = 0.004) -> bool:
        arrived, ended = at + up, at + up + spent + down
        return self.clock.judge(self.device(at), self.server(arrived), spent, self.device(ended))

    def honest(self, at: float) -> bool:
        return abs(self.clock.offset_s - self.truth(at)) <= self.clock.error_s(self.device(at)) + 1e-9


def asleep(since: float, seconds: float, ahead: float = 0.0) -> Callable[[float], float]:
    """A clock that stands still while its machine sleeps."""
    return lambda t: 100.0 + ahead + t - min(max(0.0, t - since), seconds)


def steady(t: float) -> float:
    return 7.0 + t


@pytest.mark.parametrize("seconds", [0.1, 3.0, 3600.0])
@pytest.mark.parametrize("who", ["device", "server"])
@pytest.mark.parametrize("by", ["ping", "answer"])
def test_a_machine_that_slept(seconds: float, who: str, by: str) -> None:
    sleeper = asleep(30.0, seconds)
    pair = Pair(sleeper, steady) if who == "device" else Pair(steady, sleeper)
    for k in range(20):
        pair.ping(k)
        assert pair.answer(k + 0.5)
        assert pair.honest(k + 0.6)
    error = pair.clock.error_s(pair.device(20.0))
    assert error < 0.006
    awake = 30.0 + seconds
    if by == "ping":
        pair.ping(awake)
    else:
        assert not pair.answer(awake), "it contradicts what is known"
        assert pair.clock.error_s(pair.device(awake + 0.034)) == pytest.approx(0.012)
        assert not pair.clock.best.pinged
        assert pair.honest(awake + 0.034)
        assert pair.clock.round_trip_s == float("inf"), "no ping says how long a round trip is now"
        pair.ping(awake + 0.1)
    assert pair.honest(awake + 0.2)
    assert pair.answer(awake + 0.3)
    assert pair.clock.error_s(pair.device(awake + 0.3)) < 0.006


@pytest.mark.parametrize("rate", [-500e-6, 200e-6, 500e-6, 1000e-6])
def test_a_clock_that_is_being_set_right_is_trusted_less(rate: float) -> None:
    pair = Pair(steady, lambda t: 1000.0 + t * (1 + rate))
    for k in range(40):
        pair.ping(k, up=1e-4 + 1e-4 * (k % 3), down=1e-4)
        for later in (0.01, 0.3, 0.6, 0.99):
            if k > 3:
                assert pair.honest(k + later)
    assert pair.clock.error_s(pair.device(40.0)) < 3e-3


def test_two_quartz_clocks_are_as_well_known_as_before() -> None:
    pair = Pair(steady, lambda t: 1000.0 + t * (1 + 20e-6))
    for k in range(40):
        pair.ping(k, up=1e-4, down=1e-4 + 1e-3 * (k % 4))
        assert pair.answer(k + 0.5)
        assert pair.honest(k + 0.9)
    assert pair.clock.best.error_s < 1e-3


def test_a_server_that_says_nonsense_moves_nothing() -> None:
    pair = Pair(steady, steady)
    pair.ping(0.0)
    known = pair.clock.best
    nan, inf = float("nan"), float("inf")
    for received, spent in ((nan, 0.0), (8.0, nan), (inf, 0.0), (8.0, inf), (-inf, 1.0)):
        pair.clock.judge(8.0, received, spent, 8.01)
        assert pair.clock.best == known
    pair.clock.add(8.0, nan, nan, 8.01)
    assert pair.clock.best == known
    assert pair.clock.judge(8.0, 8.005, 5.0, 8.01), "it claims more time than there was, but came in between"
    assert pair.clock.judge(8.0, 8.005, -5.0, 8.01)


def test_an_answer_after_a_sleep_says_how_little_is_known_of_its_ways() -> None:
    pair = Pair(asleep(30.0, 3.0), steady)
    pair.ping(0.0)
    began = 33.0
    up, spent, down = 0.020, 0.010, 0.004
    assert not pair.answer(began, up, spent, down)
    times = Times(pair.server(began + up), 0.0, 0.0, 0.0, spent, 0.0)
    now = pair.device(began)
    result = Result(
        {}, "cut", Marks(now, now, now, now + up + spent + down), raw_times=struct.pack("<8d", *times),
        offset=pair.clock.best, up_nbytes=1,
    )  # fmt: skip
    stages, error_ms = result.trace.stages(), result.clock_error_ms
    assert error_ms is not None
    assert abs(stages["up"] - up * 1e3) <= error_ms + 1e-6
    assert abs(stages["down"] - down * 1e3) <= error_ms + 1e-6
    assert stages["up"] + stages["down"] == pytest.approx((up + down) * 1e3)


pytestmark = pytest.mark.usefixtures("no_leaks")


def test_the_clock_is_that_of_the_shortest_ping() -> None:
    clock = ServerClock()
    assert clock.error_s(0.0) == float("inf")
    clock.add(0.0, 100.5, 100.5, 1.0)
    assert (clock.offset_s, clock.error_s(1.0)) == (100.0, 0.5)
    clock.add(2.0, 102.01, 102.02, 2.05)  # 40 ms there and back, 10 ms at the server
    assert clock.offset_s == pytest.approx(99.99)
    assert clock.error_s(2.05) == pytest.approx(0.02)
    clock.add(3.0, 103.9, 103.9, 4.0)
    assert clock.offset_s == pytest.approx(99.99)
    assert clock.error_s(2.05 + 1000) == pytest.approx(0.02 + 0.03)  # quartz drifts
    clock.add(1002.0, 1102.1, 1102.1, 1002.1)  # better than an old one by now
    assert clock.error_s(1002.1) == pytest.approx(0.05)
