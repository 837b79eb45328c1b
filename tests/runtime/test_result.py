"""What a result says of a request."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from splitpoint import wire
from splitpoint.runtime.result import Marks, Result, tell
from splitpoint.wire import Kind


def test_a_deadline_is_missed_by_what_the_answer_took_longer() -> None:
    marks = Marks(10.0, 10.1, 10.2, 10.5)
    assert Result({}, "c", marks).missed_ms == 0.0
    assert Result({}, "c", marks, deadline_s=0.6).missed_ms == 0.0
    assert Result({}, "c", marks, deadline_s=0.2).missed_ms == pytest.approx(300.0)


@pytest.mark.parametrize("resumed", [0.0, 10.3])
def test_what_was_finished_here_sums_up_without_a_gap(resumed: float) -> None:
    marks = Marks(10.0, 10.1, 10.3, 10.5)
    stages = Result({}, "c", marks, fallback="the server was late", resumed=resumed).trace.stages()
    assert list(stages) == (["head", "wait", "local"] if resumed else ["head", "local"])
    assert sum(stages.values()) == pytest.approx(500.0)


pytestmark = pytest.mark.usefixtures("no_leaks")


def test_a_server_that_lies_about_time_cannot_make_stages_negative() -> None:
    from splitpoint.runtime.probe.server_clock import Offset

    packer = wire.Packer(Kind.RESULT, wire.ResultData)
    for times in (wire.Times(1e9, 0, 5, 5, 5, 5), wire.Times(-1e9), wire.Times(10.4, 0, 0, 0, 0.2, 0)):
        head = bytes(packer.pack(1, [np.zeros(1, np.uint8)], (), times).buffers[0])  # type: ignore[arg-type]
        result = Result({}, "c", Marks(10.0, 10.1, 10.2, 10.9), raw_times=head[-64:], offset=Offset(0.0, 0.01, 10.0))
        assert all(s.ms >= -1e-9 for s in result.trace.spans)
        assert sum(result.trace.stages().values()) == pytest.approx(900.0)
    assert result.trace.ms("up") == pytest.approx(200.0)
    assert result.trace.ms("tail") == pytest.approx(200.0)
    assert result.trace.ms("down") == pytest.approx(300.0)


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
