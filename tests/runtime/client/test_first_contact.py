"""The first connection: made, waited for, or done without."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from nearby import Nearby
from serving import Gate, affine, nothing_leaks

from splitpoint.errors import AccessError, ServerError, UnreachableError
from splitpoint.models.model import Model
from splitpoint.runtime.client import Abortable, Remote
from splitpoint.runtime.client.first_contact import first_remote
from splitpoint.runtime.client.request import Fallback
from splitpoint.runtime.client.timeouts import Patience
from splitpoint.runtime.events import Event

QUICK = Patience(connect_s=0.2, pause_s=0.001, longest_pause_s=0.01, seed=1)


@pytest.fixture
def place(tmp_path: Path) -> Nearby:
    return Nearby(affine(tmp_path), Gate())


def contact(
    place: Any, fallback: Fallback, local: Model | None = None, *, deadline_s: float = 0.0, patience: Patience = QUICK,
    pause: Callable[[float], bool] = lambda seconds: False, told: list[Event] | None = None,
) -> tuple[Remote, str]:  # fmt: skip
    tell = [].append if told is None else told.append
    return first_remote(place, fallback, patience, local, tell, deadline_s=deadline_s, pause=pause, untold=told is None)


@pytest.mark.parametrize("fallback", ["error", "wait", "local"])
def test_one_that_is_there_is_taken(place: Nearby, fallback: Fallback) -> None:
    with nothing_leaks():
        assert contact(place, fallback, place.model) == (place.connections[0], "")


def test_one_that_is_not_is_an_error_waited_for_or_done_without(place: Nearby) -> None:
    place.there = False
    told: list[Event] = []
    with pytest.raises(UnreachableError):
        contact(place, "error")
    with pytest.raises(UnreachableError):
        contact(place, "local", place.model, patience=Patience(connect_s=0.2, need_server=True))
    with pytest.raises(ServerError, match="nothing can be answered here without the model's own file"):
        contact(place, "local")
    absent, why = contact(place, "local", place.model, told=told)
    assert absent.ended
    assert why == "the server is not there: nobody is nearby"
    assert str(told[0]) == "nobody is nearby; until it is there, requests are answered here"
    told.clear()
    with pytest.raises(UnreachableError):
        contact(place, "wait", deadline_s=0.01, told=told)
    assert [str(e) for e in told] == ["nobody is nearby; waiting for it"], "once"

    def comes(seconds: float) -> bool:
        place.there = True
        return False

    assert contact(place, "wait", pause=comes) == (place.connections[0], "")
    place.there = False
    with pytest.raises(ServerError, match="closed"):
        contact(place, "wait", pause=lambda seconds: True)


def test_a_refusal_is_an_error_unless_the_model_is_here_to_do_without(
    place: Nearby, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses(timeout_s: float, greeting: Callable[[Abortable], None] | None = None) -> Remote:
        raise AccessError("no token")

    monkeypatch.setattr(place, "connect", refuses)
    for fallback in ("error", "wait"):
        with pytest.raises(AccessError, match="no token"):
            contact(place, fallback, place.model)  # type: ignore[arg-type]
    with pytest.raises(AccessError, match="no token"):
        contact(place, "local")
    told: list[Event] = []
    absent, why = contact(place, "local", place.model, told=told)
    assert absent.ended
    assert why == "no token"
    assert [str(e) for e in told] == ["no token; until that is mended, requests are answered here"]
    with pytest.warns(RuntimeWarning, match="no token; until that is mended"):
        contact(place, "local", place.model)


def test_one_that_has_other_models_is_done_without_and_closed(place: Nearby, tmp_path: Path) -> None:
    told: list[Event] = []
    (tmp_path / "other").mkdir()
    with nothing_leaks():
        absent, why = contact(place, "local", affine(tmp_path / "other", name="other", seed=5), told=told)
        assert absent.ended
        assert "does not have this other" in why
        assert why in str(told[0])
        assert place.connections[0].ended


def test_one_that_takes_too_long_is_not_there_and_is_closed_when_it_comes(
    place: Nearby, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect, go, closed = place.connect, threading.Event(), threading.Event()

    def late(timeout_s: float, greeting: Callable[[Abortable], None] | None = None) -> Remote:
        assert go.wait(10)
        remote = connect(timeout_s)
        monkeypatch.setattr(remote, "close", lambda why="": closed.set())
        return remote

    monkeypatch.setattr(place, "connect", late)
    with nothing_leaks():
        absent, why = contact(place, "local", place.model)
        assert absent.ended
        assert why == "the server is not there: no answer from nearby in 0.2 s"
        go.set()
        assert closed.wait(10)
