"""When a server is asked, when it is late, and how it is tried again: all in virtual time."""

from __future__ import annotations

from random import Random

import pytest

from splitpoint.runtime.circuit_breaker import DOWN, TRYING, UP, Breaker

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 10.0

# --- the breaker ----------------------------------------------------------------------------------------------------


def breaker(seed: int = 0) -> Breaker:
    return Breaker(Random(seed))


def test_a_lost_connection_opens_it_at_once_and_one_answer_closes_it() -> None:
    b = breaker()
    assert b.allows(0.0)
    b.lost(0.0)
    assert (b.state, b.allows(0.0), b.allows(1e9)) == (DOWN, False, False)
    b.probed(0.2)
    assert b.state == TRYING
    assert [b.allows(0.2) for _ in range(3)] == [True, False, False], "one request is risked"
    b.succeeded()
    assert b.state == UP
    assert all(b.allows(0.3) for _ in range(5))


def test_three_failures_in_a_row_open_it_and_fewer_do_not() -> None:
    b = breaker()
    for _ in range(10):
        b.failed(0.0)
        b.failed(0.0)
        b.succeeded()
    assert b.state == UP
    for expected in (UP, UP, DOWN):
        b.failed(0.0)
        assert b.state == expected


def test_a_failure_while_trying_makes_the_pause_longer() -> None:
    longest = []
    for attempt in range(12):
        dues = []
        for seed in range(200):
            b = breaker(seed)
            b.lost(0.0)
            for _ in range(attempt):
                b.probed(1.0)
                assert b.allows(1.0)
                b.failed(100.0)
            dues.append(b.due_s - (100.0 if attempt else 0.0))
        assert min(dues) >= 0.0
        longest.append(max(dues))
        pause_s = min(FIRST_PAUSE_S * 2**attempt, LONGEST_PAUSE_S)
        assert pause_s * 0.9 < max(dues) <= pause_s
        assert min(dues) < pause_s * 0.1, "full jitter: from nothing to all of it"
        assert sum(dues) / len(dues) == pytest.approx(pause_s / 2, rel=0.2)
    assert longest == sorted(longest)[:7] + longest[7:]


def test_unanswered_probes_make_it_longer_too_and_success_makes_it_short_again() -> None:
    b = breaker()
    b.lost(0.0)
    for k in range(20):
        b.missed(float(k))
        assert k <= b.due_s <= k + LONGEST_PAUSE_S
    b.probed(30.0)
    assert b.allows(30.0)
    b.succeeded()
    b.lost(40.0)
    assert b.due_s <= 40.0 + FIRST_PAUSE_S


def test_edges_do_not_come_back_all_at_once() -> None:
    dues = []
    for seed in range(100):
        b = breaker(seed)
        b.lost(0.0)
        for _ in range(8):
            b.missed(0.0)
        dues.append(b.due_s)
    most = max(sum(abs(d - at) < 0.25 for d in dues) for at in dues)
    assert most < 25, "never a quarter of a hundred within half a second of ten"


def test_the_same_seed_pauses_the_same() -> None:
    one, two = breaker(7), breaker(7)
    for b in (one, two):
        b.lost(0.0)
        b.missed(1.0)
    assert one.due_s == two.due_s != breaker(8).due_s


def test_a_busy_server_is_left_alone_for_as_long_as_it_asked() -> None:
    b = breaker()
    b.failed(0.0, retry_after_s=0.5)
    assert (b.state, b.allows(0.4), b.allows(0.5)) == (UP, False, True)
    b.failed(1.0, retry_after_s=1e9)
    assert b.allows(1.0 + LONGEST_PAUSE_S), "and no longer than the longest pause"


def test_a_trial_that_nobody_waits_for_leaves_room_for_another() -> None:
    b = breaker()
    b.lost(0.0)
    b.probed(0.1)
    assert b.allows(0.1)
    assert not b.allows(0.1)
    b.dropped()
    assert b.allows(0.1)
    assert b.state == TRYING


def test_a_connection_lost_while_it_is_tried_is_lost() -> None:
    b = breaker()
    b.lost(0.0)
    b.probed(0.1)
    b.lost(0.2)
    assert (b.state, b.allows(0.2)) == (DOWN, False)
    before = b.due_s
    b.lost(0.3)
    assert b.due_s == before, "losing it again changes nothing"


def test_a_probe_counts_only_while_it_is_down() -> None:
    b = breaker()
    b.probed(0.0)
    b.missed(0.0)
    assert b.state == UP


# --- late -----------------------------------------------------------------------------------------------------------


# --- what a result says ---------------------------------------------------------------------------------------------
