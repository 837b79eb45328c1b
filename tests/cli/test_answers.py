"""An answer in words, and a table that is printed row by row."""

from __future__ import annotations

import numpy as np
import pytest

from splitpoint.cli.answers import Lines, answer, as_json
from splitpoint.trace import SPANS, STAGES, Span, Trace, stage_ms


def trace(scale: float = 1.0) -> Trace:
    return Trace(tuple(Span(name, float(k), k + scale * 1e-3) for k, name in enumerate(SPANS)))


def test_an_answer_without_labels_is_described() -> None:
    outputs = {"y": np.array([[0.5, -1.25]], np.float32), "n": np.array([7])}
    assert answer(outputs, None) == "y float32[1,2] -1.25…0.5, n int64[1]"


def test_a_line_of_json_has_stages_and_spans() -> None:
    row = as_json("a.png", {"y": np.zeros((1, 2), np.float32)}, None, trace(), cut="pool1")
    assert list(row) == ["input", "outputs", "ms", "spans_ms", "cut"]
    assert list(row["ms"]) == [*STAGES, "total"]
    assert list(row["spans_ms"]) == list(SPANS)
    assert row["ms"]["total"] == pytest.approx(sum(row["spans_ms"].values()))


@pytest.mark.parametrize("width", [60, 80, 160])
def test_rows_stand_under_their_titles(width: int) -> None:
    lines = Lines(width, ["a-rather-long-name-of-a-photo.jpg"])
    header, row = lines.header(), lines.row("a-rather-long-name-of-a-photo.jpg", "espresso 95%", stage_ms(trace()))
    lines.row("b.png", "cup 1%", stage_ms(trace(3.0)))
    for title in (*STAGES, "total"):
        end = header.index(f" {title}") + len(title) + 1
        assert row[end - 1].isdigit()
        assert row[end : end + 1] in ("", " ")
    assert lines.medians().split()[:3] == ["median", "of", "2"]
    assert lines.medians().split()[-1] == "24.0"
