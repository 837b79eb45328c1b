"""Spans, stages, and the page that explains them."""

from __future__ import annotations

import struct

import pytest
from places import DOCS

from splitpoint.runtime.probe.server_clock import Offset
from splitpoint.runtime.result import Marks, Result
from splitpoint.trace import SPANS, STAGES, Recorder, Span, Trace, by_stage, stage_ms


def answered(**more: object) -> Result:
    """A request that took 900 ms: 100 head, 100 encode, 300 up, 10 + 20 + 30 + 40 at the server, 300 down."""
    times = struct.pack("<8d", 0.5, 0.0, 0.01, 0.02, 0.03, 0.04, 0.0, 0.0)
    return Result({}, "cut", Marks(0.0, 0.1, 0.2, 0.9), raw_times=times, offset=Offset(0.0, 0.01, 0.0), **more)  # type: ignore[arg-type]


def test_every_stage_has_spans_and_every_span_a_stage() -> None:
    assert {meaning.stage for meaning in SPANS.values()} == set(STAGES)
    assert all(meaning.text for meaning in SPANS.values())


def test_stages_sum_to_the_whole_time() -> None:
    spans = tuple(Span(name, k, k + 2.0**k * 1e-3) for k, name in enumerate(SPANS))
    stages = stage_ms(Trace(spans))
    assert list(stages) == [*STAGES, "total"]
    assert stages["total"] == pytest.approx(sum(s.ms for s in spans))
    assert sum(stages[s] for s in STAGES) == pytest.approx(stages["total"])


def test_the_servers_queue_is_no_work_of_the_server() -> None:
    stages = stage_ms(answered().trace)
    assert stages == pytest.approx(
        {"decode": 0, "edge": 100, "encode": 100, "net": 600, "queue": 20, "server": 80, "total": 900}
    )


def test_what_was_waited_for_and_finished_here() -> None:
    result = answered(fallback="late", resumed=0.5)
    assert stage_ms(result.trace) == pytest.approx(
        {"decode": 0, "edge": 500, "encode": 0, "net": 0, "queue": 400, "server": 0, "total": 900}
    )


def test_a_span_that_a_caller_brought_along_was_before_the_head() -> None:
    result = answered(spans=(Span("prepare", -0.3, -0.2), Span("crop", -0.2, 0.0)))
    assert stage_ms(result.trace)["decode"] == pytest.approx(300)
    assert stage_ms(result.trace)["total"] == pytest.approx(result.total_ms)


def test_spans_of_a_file_are_added_up_like_those_of_a_trace() -> None:
    trace = answered().trace
    assert by_stage(trace.stages()) == stage_ms(trace)
    assert by_stage({}) == dict.fromkeys([*STAGES, "total"], 0.0)


def test_a_recorder_keeps_what_raised_and_sorts_by_start() -> None:
    clock = iter([1.0, 1.5]).__next__
    recorder = Recorder(clock)
    with pytest.raises(KeyError), recorder.span("head"):
        raise KeyError
    recorder.add("prepare", 0.25, 1.0)
    assert str(recorder.trace()) == "prepare 750.00 ms · head 500.00 ms"
    assert recorder.trace().ms("head") == 500
    assert recorder.trace().ms("tail") == 0


def test_the_page_says_what_the_module_says() -> None:
    lines = (DOCS / "stages.md").read_text().splitlines()
    spans = [f"| `{name}` | {meaning.stage} | {meaning.text} |" for name, meaning in SPANS.items()]
    stages = [
        f"| {stage} | {', '.join(f'`{name}`' for name, meaning in SPANS.items() if meaning.stage == stage)} |"
        for stage in STAGES
    ]
    assert [line for line in lines if line.startswith("| `") and "splitpoint" not in line] == spans
    first = lines.index("| stage | spans |") + 2
    assert lines[first : first + len(stages) + 1] == [*stages, "| total | all of them |"]
