"""What strangers may take in a time; pure but for `Throttle`."""

from __future__ import annotations

import pytest

from splitpoint.transports import budget
from splitpoint.transports.budget import Backlog, Budget, Throttle


def test_what_was_taken_comes_back_with_time_and_never_more_than_all_of_it() -> None:
    some = Budget(most=2.0, per_s=0.5)
    assert some.take(2.0, now_s=100.0) == 0.0
    assert some.take(0.5, now_s=100.0) == pytest.approx(1.0)
    assert some.take(0.5, now_s=101.0) == 0.0
    assert some.take(2.0, now_s=1000.0) == 0.0
    assert some.take(0.1, now_s=1000.0) == pytest.approx(0.2)


def test_a_clock_that_goes_back_gives_nothing() -> None:
    some = Budget(most=1.0, per_s=1.0)
    assert some.take(1.0, now_s=100.0) == 0.0
    assert some.take(1.0, now_s=50.0) == pytest.approx(1.0)


def test_what_is_known_afterwards_only_is_owed() -> None:
    some = Budget(most=1.0, per_s=1.0)
    some.take(0.0, now_s=0.0)
    some.spend(5.0)
    assert some.take(0.0, now_s=1.0) == pytest.approx(3.0)
    assert some.take(0.0, now_s=4.0) == 0.0


def test_a_backlog_adds_up() -> None:
    backlog = Backlog()
    backlog.add(7)
    backlog.add(-3)
    assert backlog.nbytes == 4


def test_work_that_took_too_long_makes_the_next_wait_outside_of_its_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s, computed_s, slept = 100.0, 0.0, list[float]()
    monkeypatch.setattr(budget, "monotonic", lambda: now_s)
    monkeypatch.setattr(budget, "thread_time", lambda: computed_s)
    monkeypatch.setattr(budget, "sleep", slept.append)
    throttle = Throttle(most_s=0.25, share=0.5)
    with throttle:
        computed_s = 0.75
    with throttle:
        pass
    assert slept == [0.0, pytest.approx(1.0)]


def test_a_wait_that_is_interrupted_leaves_the_turn_to_others(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(seconds: float) -> None:
        raise KeyboardInterrupt

    throttle = Throttle(most_s=0.25, share=0.5)
    with monkeypatch.context() as patched:
        patched.setattr(budget, "sleep", interrupted)
        with pytest.raises(KeyboardInterrupt), throttle:
            pytest.fail("it was not its turn")
    with throttle:
        pass
