"""When an answer is late."""

from __future__ import annotations

import pytest

from splitpoint.runtime.client.timeouts import AnswerTimes, Patience


def test_before_anything_is_known_it_is_a_second() -> None:
    assert AnswerTimes(Patience()).late_s() == 1.0


def test_late_is_the_usual_wait_and_what_it_varies_by_or_the_least() -> None:
    steady, shaky = AnswerTimes(Patience()), AnswerTimes(Patience())
    for k in range(32):
        steady.add(0.1)
        shaky.add(0.5 if k % 2 else 0.1)
    assert steady.late_s() == pytest.approx(0.1 + 0.2)
    assert shaky.late_s() == pytest.approx(0.3 + 4 * 0.2)


def test_one_slow_answer_makes_no_difference_and_a_slower_link_does() -> None:
    times = AnswerTimes(Patience())
    for _ in range(20):
        times.add(0.05)
    times.add(9.0)
    assert times.late_s() == pytest.approx(0.25)
    for _ in range(32):
        times.add(0.5)
    assert times.late_s() == pytest.approx(0.7)


def test_a_plan_is_believed_and_counts_from_the_beginning() -> None:
    times = AnswerTimes(Patience())
    times.plan(0.3)
    assert times.late_s() == pytest.approx(0.5)
    assert times.late_s(spent_s=0.1) == pytest.approx(0.4)
    assert times.late_s(spent_s=9.0) == pytest.approx(0.2)
    for _ in range(9):
        times.add(2.0)
    assert times.late_s() == pytest.approx(0.5), "what was seen says how much it varies, not how long it takes"


def test_a_deadline_leaves_time_to_finish_here() -> None:
    times = AnswerTimes(Patience())
    for _ in range(9):
        times.add(0.1)
    assert times.late_s(left_s=0.2, here_s=0.05) == pytest.approx(0.15)
    assert times.late_s(left_s=9.0, here_s=0.05) == pytest.approx(0.3)
    assert times.late_s(left_s=0.02, here_s=0.05) == 0.0, "there is no time to wait at all"


def test_finishing_here_is_as_long_as_the_longest_of_the_last_times() -> None:
    times = AnswerTimes(Patience())
    assert times.here_s == 0.0
    for seconds in (0.3, *[0.1] * 7):
        times.finished(seconds)
    assert times.here_s == 0.3
    times.finished(0.1)
    assert times.here_s == 0.1
