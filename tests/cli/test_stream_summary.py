"""The end of a stream in a few lines."""

from __future__ import annotations

import msgspec
import numpy as np

from splitpoint.cli.run_rows import Tag
from splitpoint.cli.stream_summary import StreamSummary
from splitpoint.runtime.result import Marks, Result
from splitpoint.runtime.stream.pacing import Counts


def answer(took_s: float, deadline_s: float = 0.0, fallback: str = "") -> Result:
    marks = Marks(0.0, took_s, took_s, took_s)
    return Result({"y": np.zeros(1, np.float32)}, "a", marks, deadline_s=deadline_s, fallback=fallback)


def summary(*times: float) -> StreamSummary:
    return StreamSummary(clock=iter([0.0, *times]).__next__)


def test_no_answers_are_said_and_one_at_once_has_no_rate() -> None:
    assert summary().speed() == "no answers"
    at_once = summary(0.0)
    at_once.add(answer(0.010))
    assert at_once.speed() == "1 answer, median 10.0 ms, p95 10.0 ms"
    assert list(at_once.trouble()) == []


def test_reasons_are_counted_without_their_details() -> None:
    sums = summary(1.0, 2.0, 3.0)
    for why in ("the server is gone: reset", "the server is gone: timed out", "the server was late"):
        sums.add(answer(0.020, fallback=why))
    assert list(sums.trouble()) == ["3 of 3 finished here (the server is gone: 2; the server was late: 1)"]


def test_answers_by_a_guess_are_counted() -> None:
    sums = summary(1.0, 2.0, 3.0)
    for plan in ("guess", "guess", "profiled"):
        sums.add(msgspec.structs.replace(answer(0.02), tag=Tag("x", plan=plan)))
    assert list(sums.trouble()) == ["2 of 3 cut by a guess (--profile-first plans before the first)"]


def test_what_came_after_its_deadline_is_counted_with_the_worst() -> None:
    sums = summary(1.0, 2.0, 4.0)
    for took_s in (0.05, 0.12, 0.18):
        sums.add(answer(took_s, deadline_s=0.1))
    assert list(sums.trouble()) == ["2 of 3 after the deadline of 100 ms, by 80.0 ms at most"]
    assert sums.speed().startswith("3 answers in 4.00 s: ")


def test_every_frame_is_accounted_for() -> None:
    sums = summary(1.0)
    sums.add(answer(0.01))
    assert sums.frames(Counts(taken=1), "queue") == "1 frame: 1 answered"
    assert sums.frames(Counts(taken=3, dropped=2), "drop-oldest") == (
        "5 frames: 1 answered, 2 dropped (drop-oldest), 2 without an answer"
    )
