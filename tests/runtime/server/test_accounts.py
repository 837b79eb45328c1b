"""What clients hold and have used, counted under one lock."""

from __future__ import annotations

import threading

import pytest

from splitpoint.errors import BusyError
from splitpoint.runtime.server import accounts
from splitpoint.runtime.server.accounts import DROPPED, MOST_PROFILES, Account, Ledger, Origins, name_of
from splitpoint.wire import Limits

STAGES = (0.001, 0.002, 0.003, 0.004)


def account(ledger: Ledger, name: str = "10.0.0.1:4000") -> Account:
    origin = ledger.origins.enter(name)
    assert origin is not None
    return Account(ledger, origin, name)


def test_room_is_taken_and_given_back_by_whoever_ends_a_request() -> None:
    ledger = Ledger(Limits(memory_bytes=1000))
    one, other = account(ledger), account(ledger, "10.0.0.2:4000")
    assert one.reserve(400)
    assert other.reserve(100)
    assert (ledger.held_nbytes, one.held_nbytes, one.unanswered) == (500, 400, 1)
    one.answered(400, 1, STAGES)
    other.over(100, DROPPED)
    assert (ledger.held_nbytes, one.held_nbytes, one.unanswered, one.answers) == (0, 0, 0, 1)
    stats = ledger.stats()
    assert (stats.received, stats.answered, stats.dropped, stats.in_flight) == (2, 1, 1, 0)
    assert [round(h.total_s, 6) for h in stats.stages.values()] == list(STAGES)


def test_an_address_that_has_some_may_have_as_much_as_is_left_and_a_newcomer_three_times_that() -> None:
    ledger = Ledger(Limits(memory_bytes=1000))
    first, second, stranger = account(ledger), account(ledger), account(ledger, "10.0.0.2:4000")
    assert first.reserve(500)
    assert not first.reserve(1), "half of it all is one's own"
    assert second.reserve(100), "its neighbour has none"
    assert not second.reserve(401)
    assert stranger.reserve(400), "there is room for others, whoever floods"
    assert not stranger.reserve(1)
    assert ledger.stats().request_bytes == 1000


def test_the_first_request_is_taken_however_large_it_is() -> None:
    ledger = Ledger(Limits(memory_bytes=1000))
    one = account(ledger)
    assert one.reserve(5000)
    assert not account(ledger, "10.0.0.2:4000").reserve(1)
    one.answered(5000, 1, STAGES)


def test_refusals_are_counted_by_why_and_failures_together() -> None:
    ledger = Ledger(Limits())
    one = account(ledger)
    for outcome in ("busy", "input", "busy"):
        one.refused(outcome)
    for outcome in ("late", "engine", "server", "internal"):
        assert one.reserve(1)
        one.over(1, outcome)
    stats = ledger.stats()
    assert stats.refused == {"busy": 2, "input": 1, "late": 1}
    assert (stats.received, stats.failed, stats.answered) == (7, 3, 0)


def test_who_waits_for_the_end_hears_of_the_last_answer() -> None:
    ledger = Ledger(Limits())
    one = account(ledger)
    assert one.reserve(10)
    assert one.ask_profile()
    ledger.drain(True)
    ended: list[bool] = []

    def wait() -> None:
        ledger.wait(30.0)
        ended.append(True)

    thread = threading.Thread(target=wait)
    thread.start()
    one.answered(10, 1, STAGES)
    ledger.wait(0.0)
    assert not ended, "a profile is still to be sent"
    one.end_profiles()
    thread.join(30)
    assert ended


def test_an_address_waits_for_so_many_profiles() -> None:
    ledger = Ledger(Limits())
    one, neighbour = account(ledger), account(ledger)
    assert [one.ask_profile() for _ in range(MOST_PROFILES)] == [True] * MOST_PROFILES
    assert not neighbour.ask_profile()
    assert account(ledger, "10.0.0.2:4000").ask_profile()
    one.end_profiles(2)
    assert neighbour.ask_profile()
    assert one.unanswered == MOST_PROFILES - 2


def test_who_shows_a_certificate_has_an_account_of_its_own() -> None:
    ledger = Ledger(Limits(client_compiles=1))
    one, neighbour = account(ledger), account(ledger)
    one.identify("camera 7")
    assert one.client is not neighbour.client
    assert one.home is neighbour.origin
    one.check_compile()
    with pytest.raises(BusyError, match="1 tails a minute"):
        one.check_compile()
    neighbour.check_compile()
    one.leave()
    neighbour.leave()
    assert (one.home.connections, one.origin.connections) == (0, 0)


def test_time_for_making_tails_and_for_talk_is_the_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = Ledger(Limits())
    one, neighbour = account(ledger), account(ledger)
    monkeypatch.setattr(accounts, "thread_time", iter((0.0, 1e6)).__next__)
    with one.building():
        pass
    with pytest.raises(BusyError, match="too much time went into tails"), neighbour.building():
        pytest.fail("it is used up")
    assert one.charge(1e-6) == 0.0
    assert one.charge(1e6) > 0, "it is not read from for a while"
    assert neighbour.charge(1e-6) == 0.0, "it was not this one that talked"


def test_probes_are_counted_by_bytes() -> None:
    one = account(Ledger(Limits()))
    assert one.may_probe(1 << 30) == 0.0
    assert one.may_probe(1 << 20) > 0


def test_connections_of_an_address_share_one_account_and_are_counted() -> None:
    origins = Origins(connections=2, compiles=10)
    one, other = origins.enter("10.0.0.1:4000"), origins.enter("10.0.0.1:4001")
    assert one is other is not None
    assert origins.full("10.0.0.1")
    assert origins.enter("10.0.0.1:4002") is None
    assert not origins.full("10.0.0.2")
    origins.leave(one)
    assert not origins.full("10.0.0.1")
    assert origins.enter("10.0.0.1:4003") is one, "coming back forgets nothing"


def test_what_is_fetched_piece_by_piece_is_kept_while_somebody_is_here() -> None:
    origins = Origins(connections=2, compiles=10)
    one = origins.enter("10.0.0.1:4000")
    assert one is not None
    origins.enter("10.0.0.1:4001")
    one.giving["hash"] = memoryview(b"weights")
    origins.leave(one)
    assert one.giving
    origins.leave(one)
    assert not one.giving


def test_a_certificate_has_an_account_at_its_address() -> None:
    origins = Origins(connections=2, compiles=10)
    home = origins.enter("10.0.0.1:4000")
    assert home is not None
    mine, again = origins.identify(home, "camera 7"), origins.identify(home, "camera 7")
    assert mine is again is not home
    assert origins.identify(home, "camera 8") is not mine
    assert (home.connections, mine.connections) == (1, 2)


@pytest.mark.parametrize(
    ("peer", "name"),
    [
        ("10.0.0.1:4000", "10.0.0.1"),
        ("[2001:db8::7]:4000", "2001:db8::/64"),
        ("[::ffff:10.0.0.1]:4000", "10.0.0.1"),
        ("[fe80::7%eth0]:4000", "fe80::7%eth0"),
        ("memory:7", "memory"),
    ],
)
def test_whom_an_address_stands_for(peer: str, name: str) -> None:
    assert name_of(peer) == name
