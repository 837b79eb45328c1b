"""What a result says of a request."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from serving import nothing_leaks

from splitpoint import wire
from splitpoint.runtime.result import Marks, Result
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


@pytest.fixture(autouse=True)
def _no_leaks() -> Iterator[None]:
    with nothing_leaks():
        yield


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
