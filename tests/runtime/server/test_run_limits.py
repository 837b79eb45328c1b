"""How long a run may take, and what becomes of the others meanwhile: without an engine."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import pytest
from serving import until

from splitpoint.errors import BusyError, EngineError
from splitpoint.runtime.events import Event
from splitpoint.runtime.server import run_limits
from splitpoint.runtime.server.run_limits import Like, Turns, Watch
from splitpoint.tensors import Array


class Session:
    """Runs until it is let go, and fails if it is told to."""

    def __init__(self) -> None:
        self.begun, self.go = threading.Event(), threading.Event()
        self.go.set()
        self.fails: Exception | None = None

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        self.begun.set()
        assert self.go.wait(30)
        if self.fails is not None:
            raise self.fails
        return dict(inputs)


def watch(told: list[Event], lent: list[int], run_s: float = 1e3) -> Watch:
    return Watch(run_s, 1 << 60, lambda: lent.append(1), lambda: lent.append(-1), lambda: None, told.append)


def test_runs_may_take_a_multiple_of_their_like_once_that_is_known() -> None:
    like = Like(0.0)
    assert like.limit_s(30.0) == 30.0
    for _ in range(3):
        like.took(0.5)
    assert like.limit_s(30.0) == pytest.approx(10.0)
    for _ in range(50):
        like.took(0.001)
    assert like.limit_s(30.0) == 5.0, "five seconds are never too long"
    assert like.limit_s(2.0) == 2.0


def test_a_run_that_is_given_up_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[Event] = []
    lent: list[int] = []
    looking, session = watch(told, lent, run_s=0.0), Session()
    session.go.clear()
    session.fails = EngineError("terminated")
    caught: list[Exception] = []

    def run() -> None:
        try:
            looking.run(session, {}, Like(0.0), "a client")
        except EngineError as exc:
            caught.append(exc)

    thread = threading.Thread(target=run)
    thread.start()
    assert session.begun.wait(30)
    looking.close()
    assert looking.look() is False
    assert until(lambda: any("a run of a client is given up" in event.sentence for event in told))
    session.go.set()
    thread.join(30)
    assert "was given up after 0 s" in str(caught[0])
    assert lent == []


def test_one_that_does_not_hear_it_lends_its_place_and_gives_it_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_limits, "_HEARING_S", -1.0)
    told: list[Event] = []
    lent: list[int] = []
    looking, session = watch(told, lent, run_s=0.0), Session()
    session.go.clear()
    thread = threading.Thread(target=lambda: looking.run(session, {}, Like(0.0), "a client"))
    thread.start()
    assert session.begun.wait(30)
    looking.close()
    looking.look()
    looking.look()
    assert lent == [1]
    session.go.set()
    thread.join(30)
    looking.look()
    assert lent == [1, -1]
    assert any("another worker works in its place" in event.sentence for event in told)


def test_after_the_end_nothing_is_run() -> None:
    looking = watch([], [])
    run = partial(looking.run, Session(), like=Like(0.0), name="a client", times=2)
    x: Any = {"x": np.ones(3)}
    assert run(x) == x
    looking.end()
    with pytest.raises(EngineError, match="the server is ending"):
        run(x)


def test_what_a_batch_takes_says_nothing_of_a_run_alone() -> None:
    like, looking = Like(0.0), watch([], [])
    for _ in range(3):
        looking.run(Session(), {}, like, "a client", times=4)
    assert like.limit_s(1e3) == 1e3
    for _ in range(3):
        looking.run(Session(), {}, like, "a client")
    assert like.limit_s(1e3) == 5.0


def test_turns_are_for_one_of_an_address_and_one_of_a_tail(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_limits, "_TURN_S", 0.0)
    turns = Turns()
    with turns.turn("10.0.0.1", "a"):
        for address, tail in (("10.0.0.1", "b"), ("10.0.0.2", "a")):
            with pytest.raises(BusyError, match="takes long"), turns.turn(address, tail):
                pytest.fail("it is another one's turn")
        with turns.turn("10.0.0.2", "b"):
            pass
    with turns.turn("10.0.0.1", "b"):
        pass


def test_who_had_a_run_given_up_waits_longer_each_time() -> None:
    turns = Turns()
    waits = []
    for _ in range(3):
        turns.ban("10.0.0.1")
        with pytest.raises(BusyError) as caught, turns.turn("10.0.0.1", "a"):
            pytest.fail("it is banned")
        waits.append(caught.value.retry_after_s)
    assert waits == [pytest.approx(10.0, abs=0.5), pytest.approx(20.0, abs=0.5), pytest.approx(40.0, abs=0.5)]
    with turns.turn("10.0.0.2", "a"):
        pass
