"""What splitpoint run prints of each answer, and what its summary says."""

from __future__ import annotations

import json

import numpy as np
import pytest
from serving import interruptible, until  # noqa: F401  # a fixture is used by its name

from splitpoint.cli.run_rows import AnswerRows, Tag, whole_trace
from splitpoint.cli.stream_summary import StreamSummary
from splitpoint.runtime.result import Marks, Result
from splitpoint.runtime.stream.pacing import Counts
from splitpoint.trace import Span


def test_rows_and_the_summary_say_what_was_finished_here(capsys: pytest.CaptureFixture[str]) -> None:
    marks = Marks(10.0, 10.01, 10.05, 10.1)
    outputs = {"y": np.zeros((1, 2), np.float32)}
    prepared = (Span("prepare", 9.97, 9.98),)
    plain = Result(outputs, "a", marks, prepared, Tag("x/1.png"), deadline_s=0.2)
    late = Result(outputs, "a", marks, prepared, Tag("x/2.png", 1), fallback="the server is gone: reset", resumed=10.05,
                  deadline_s=0.08, attempts=2)  # fmt: skip
    rows = AnswerRows(lambda: None, ["1.png"], lambda: "about", as_json=False, keep=False)
    summary = StreamSummary(clock=iter([0.0, 1.0, 2.0, 3.0]).__next__)
    for result in (plain, late, late):
        rows.print(result)
        summary.add(result)
    about, header, first, second, _ = capsys.readouterr().out.splitlines()
    assert about == "about"
    assert header.startswith("input")
    assert first.split()[0] == "1.png"
    assert "finished" not in first
    # 10 ms of decoding, 20 until its turn, and 100 more: the deadline counts all of that, as the total does.
    assert second.endswith("finished here: the server is gone: reset  50.0 ms after the deadline")
    assert sum(s.ms for s in whole_trace(late).spans) == pytest.approx(130.0)
    assert summary.speed() == "3 answers in 3.00 s: 1/s, median 130 ms, p95 130 ms"
    assert list(summary.trouble()) == [
        "2 of 3 finished here (the server is gone)",
        "2 of 3 after the deadline of 80.0 ms, by 50.0 ms at most",
    ]
    counts = Counts(taken=4, dropped=2, degraded=1)
    assert summary.frames(counts, "degrade") == (
        "6 frames: 3 answered, 2 dropped (degrade), 1 with a cheaper option, 1 without an answer"
    )
    as_json = AnswerRows(lambda: None, ["1.png"], lambda: "about", as_json=True, keep=True)
    as_json.print(late)
    row = json.loads(capsys.readouterr().out)
    assert (row["fallback"], row["attempts"], row["degraded"]) == ("the server is gone: reset", 2, 1)
    assert row["missed_ms"] == pytest.approx(50.0)
    assert list(as_json.outputs) == ["2"]
