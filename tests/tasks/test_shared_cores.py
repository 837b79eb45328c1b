"""What two halves of one machine lose while both compute, in virtual time."""

from __future__ import annotations

import threading

import pytest

from splitpoint.tasks.shared_cores import slowdown


class Server:
    """Runs of a millisecond, `factor` times as long in the thread in which it is asked while the device computes."""

    def __init__(self, factor: float) -> None:
        self.factor, self.now, self.main = factor, 0.0, threading.get_ident()

    def run(self) -> float:
        took = 0.001 * (self.factor if threading.get_ident() != self.main else 1.0)
        self.now += took
        return took


@pytest.mark.parametrize("factor", [1.0, 1.1, 2.4, 5.0])
def test_what_is_shared_is_the_mean_of_both_sides(factor: float) -> None:
    """The device's runs take the same here, as where a slow link leaves the server idle."""
    server = Server(factor)

    def device() -> float:
        server.now += 0.001
        return 0.001

    mean = (1 + factor) / 2
    told = slowdown(device, server.run, budget_s=0.4, clock=lambda: server.now)
    assert told == pytest.approx(mean if mean > 1.1 else 1.0)


def test_a_server_that_was_not_asked_shares_nothing() -> None:
    ticks = iter(range(1000))
    assert slowdown(lambda: 0.001, lambda: 0.0, clock=lambda: next(ticks) / 10) == 1.0
