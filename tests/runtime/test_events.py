"""What is told: a kind, a sentence that prints as one line, and fields."""

from __future__ import annotations

import dataclasses
import logging

import pytest

from splitpoint.runtime.events import Event, Teller, ignore, teller


def test_an_event_prints_as_its_sentence_on_one_line() -> None:
    event = Event("left", "a\x1b[31m peer\nleft", {"peer": "a", "answers": 3})
    assert str(event) == "a [31m peer left"
    assert event.fields["answers"] == 3
    assert Event("notice", "x").fields == {}
    with pytest.raises(dataclasses.FrozenInstanceError):
        event.sentence = "another"  # type: ignore[misc]


def test_who_is_told_can_be_another_one_later() -> None:
    first: list[str] = []
    later: list[str] = []
    tell = Teller(lambda event: first.append(event.sentence))
    tell(Event("notice", "one"))
    tell.redirect(lambda event: later.append(event.sentence))
    tell(Event("notice", "two"))
    assert (first, later) == (["one"], ["two"])
    assert teller(tell) is tell
    assert teller(ignore) is not tell


def test_the_logger_hears_the_kind(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, logger="splitpoint"):
        Teller()(Event("failed", "it broke"))
        Teller()(Event("opened", "a tail"))
    assert [(r.levelno, r.getMessage(), getattr(r, "kind", "")) for r in caplog.records] == [
        (logging.ERROR, "it broke", "failed"), (logging.DEBUG, "a tail", "opened"),
    ]  # fmt: skip


def test_what_is_held_is_told_at_the_end() -> None:
    told: list[str] = []
    tell = Teller(lambda event: told.append(event.sentence))
    with tell.held():
        tell(Event("notice", "one"))
        with tell.held():
            tell(Event("notice", "two"))
        assert told == []
    assert told == ["one", "two"]
