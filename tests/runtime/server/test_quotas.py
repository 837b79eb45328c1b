"""What one address may take, and whom an address stands for."""

from __future__ import annotations

import pytest

from splitpoint.runtime.server.quotas import Origins, name_of


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


def test_an_origin_counts_what_it_is_told() -> None:
    home = Origins(connections=1, compiles=1).enter("10.0.0.1:4000")
    assert home is not None
    home.hold(100)
    home.hold(-40)
    home.ask_profiles(2)
    home.had_measured(1.5)
    assert (home.held_nbytes, home.profiles, home.measured_s) == (60, 2, 1.5)


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
