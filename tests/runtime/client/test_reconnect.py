"""The way to one server: who stands in for one that is absent, and when a lost one is made again."""

from __future__ import annotations

import threading

import pytest
from nearby import Nearby
from serving import Gate, affine, nothing_leaks, until

from splitpoint.errors import AccessError, ServerError, UnreachableError
from splitpoint.runtime.circuit_breaker import LinkState
from splitpoint.runtime.client import Remote
from splitpoint.runtime.client.reconnect import AbsentRemote, Line, gone
from splitpoint.runtime.client.timeouts import Patience

QUICK = Patience(pause_s=0.005, longest_pause_s=0.02, pong_s=0.1, seed=1)


def test_who_is_absent_is_taken_for_one_that_can_do_all_and_does_nothing(tmp_path: object) -> None:
    absent: Remote = AbsentRemote("kitchen", UnreachableError("nobody is there"))
    assert absent.ended
    assert "int8" in absent.offer.codecs
    assert absent.offer.share == "model"
    assert absent.ping(1.0) is None
    with pytest.raises(ServerError, match="nobody is there"):
        absent.channel()
    absent.close("the edge is closed")
    with pytest.raises(ServerError, match="the edge is closed"):
        absent.open("f", None, ())  # type: ignore[arg-type]


def test_a_lost_one_is_made_again_behind_and_tried_with_one_request(tmp_path: object) -> None:
    place = Nearby(affine(tmp_path), Gate())  # type: ignore[arg-type]
    states: list[LinkState] = []
    opened: list[Remote] = []
    rested = threading.Event()
    with nothing_leaks():
        first = place.connect(1.0)
        line = Line(first, lambda greeting: place.connect(1.0, greeting), QUICK, states.append, lambda: 0.0)
        assert (line.state, line.calm, line.connections) == ("up", True, 1)
        line.keep(opened.append, lambda remote: rested.set())
        place.there = False
        first.abort("went away")
        assert (line.state, line.allows(), line.calm) == ("down", False, False)
        assert line.why == "the server is gone: nearby went away"
        assert until(lambda: line.why == "the server is gone: nobody is nearby")
        place.there = True
        assert rested.wait(10)
        assert line.state == "trying"
        assert opened == [line.remote]
        assert line.connections == 2
        assert line.allows()
        assert not line.allows(), "one is risked"
        line.succeeded()
        assert (line.state, line.why, line.calm) == ("up", "", True)
        assert states == ["down", "trying", "up"]
        line.lost(first, "that is old news")
        assert line.state == "up"
        line.close()


def test_without_keeping_it_every_request_may_try() -> None:
    absent = AbsentRemote("kitchen", UnreachableError("nobody is there"))
    line = Line(absent, lambda greeting: absent, QUICK, lambda state: None, lambda: 0.0, "it was never there")
    assert (line.state, line.connections, line.allows(), line.why) == ("down", 0, True, "it was never there")
    line.close()


def test_why_it_is_gone_is_said_unless_it_refuses() -> None:
    assert gone(ServerError("it broke")) == "the server is gone: it broke"
    assert gone(ServerError("it broke"), met=False) == "the server is not there: it broke"
    assert gone(AccessError("no token")) == "no token"
