"""Watchers are told one after the other, whatever one of them does."""

from __future__ import annotations

from typing import Any

import pytest

from splitpoint.runtime.watcher import tell


class Noted:
    def __init__(self, seen: list[str], name: str) -> None:
        self._seen, self._name = seen, name

    def failed(self, why: str) -> None:
        self._seen.append(f"{self._name}: {why}")


class Leaving:
    """Takes itself, and who comes after it, out of the list while it is told."""

    def __init__(self, watchers: list[Any]) -> None:
        self._watchers = watchers

    def failed(self, why: str) -> None:
        self._watchers.clear()


class Clumsy:
    def failed(self, why: str) -> None:
        raise RuntimeError("a full disk")


def test_all_are_told_who_were_there() -> None:
    seen: list[str] = []
    watchers: list[Any] = []
    watchers += [Noted(seen, "first"), Leaving(watchers), Noted(seen, "last")]
    tell(watchers, lambda w: w.failed("busy"))
    assert seen == ["first: busy", "last: busy"]
    tell(watchers, lambda w: w.failed("busy"))
    assert len(seen) == 2


def test_one_that_raises_keeps_nothing_from_the_others(reported: set[tuple[str, type[BaseException]]]) -> None:
    seen: list[str] = []
    watchers: list[Any] = [Clumsy(), Noted(seen, "last")]
    with pytest.warns(RuntimeWarning, match="Clumsy"):
        tell(watchers, lambda w: w.failed("gone"))
    assert seen == ["last: gone"]
    assert reported == {("Clumsy", RuntimeError)}
