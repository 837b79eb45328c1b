"""A cut's requests as a row, and rows as a file."""

from __future__ import annotations

import struct
from dataclasses import replace
from pathlib import Path

import pytest

from splitpoint.errors import UsageError
from splitpoint.models import load
from splitpoint.models.model import Model
from splitpoint.report.sweep_table import (
    COLUMNS,
    FASTEST,
    SLOWER,
    TABLE,
    SweepRow,
    close,
    in_words,
    read_rows,
    sweep_row,
    write_rows,
)
from splitpoint.runtime.probe.server_clock import Offset
from splitpoint.runtime.result import Marks, Result
from splitpoint.trace import Span


@pytest.fixture(scope="module")
def model() -> Model:
    return load("zoo:lenet5")


def request(scale: float = 1.0) -> Result:
    """900 ms, times `scale`: 100 head, 100 encode, 300 up, 10 + 20 + 30 + 40 at the server (queue: 20), 300 down."""
    times = struct.pack("<8d", *(scale * t for t in (0.5, 0.0, 0.01, 0.02, 0.03, 0.04, 0.0, 0.0)))
    marks = Marks(*(scale * t for t in (0.0, 0.1, 0.2, 0.9)))
    return Result({}, "pool1", marks, (Span("prepare", -1.0, 0.0),), raw_times=times, offset=Offset(0.0, 0.01, 0.9),
                  up_nbytes=1000, down_nbytes=100, codecs={})  # fmt: skip


def row_of(model: Model, *scales: float) -> SweepRow:
    return sweep_row(model.graph.cut("pool1"), [request(s) for s in scales], "here", model)


def test_stages_of_a_row_add_up_and_leave_out_reading_the_input(model: Model) -> None:
    row = row_of(model, 1.0)
    assert row.avg_compute == pytest.approx(0.2)
    assert row.avg_transfer == pytest.approx(0.3)
    assert row.avg_recv == pytest.approx(0.4)
    assert row.avg_rtt == round(row.avg_compute + row.avg_transfer + row.avg_recv, 6)
    assert row.avg_queue == pytest.approx(0.02)
    assert row.avg_server_compute == pytest.approx(0.08)
    assert row.clock_error == pytest.approx(0.01)
    assert (row.bytes_up, row.bytes_down, row.n, row.codec) == (1000, 100, 1, "raw")


def test_averages_and_percentiles(model: Model) -> None:
    row = row_of(model, 1.0, 2.0, 3.0)
    assert row.avg_rtt == pytest.approx(1.8)
    assert row.p50_rtt == pytest.approx(1.8)
    assert row.p95_rtt == pytest.approx(2.61)
    cells = {column.title: column.cell(row) for column in TABLE}
    assert cells["cut"] == "after pool1"
    assert (cells["edge"], cells["up"], cells["recv"], cells["total"]) == ("400", "600", "800", "1800")
    assert (cells["server"], cells["bytes up"]) == ("160", "1.0 kB")


def test_the_table_has_medians_and_the_seeds_columns_means(model: Model) -> None:
    row = row_of(model, 1.0, 1.0, 10.0)
    assert (row.avg_compute, row.avg_rtt) == pytest.approx((0.8, 3.6))
    assert (row.p50_compute, row.p50_transfer, row.p50_recv) == pytest.approx((0.2, 0.3, 0.4))
    assert (row.p50_queue, row.p50_server_compute, row.p50_rtt) == pytest.approx((0.02, 0.08, 0.9))
    assert (row.p50_low, row.p50_high) == pytest.approx((0.9, 9.0))
    cells = {column.title: column.cell(row) for column in TABLE}
    assert (cells["edge"], cells["up"], cells["recv"], cells["total"]) == ("200", "300", "400", "900")


def test_the_table_marks_what_cannot_be_told_from_the_fastest(model: Model) -> None:
    marks = [TABLE[0].cell(replace(row_of(model, 1.0), verdict=v)) for v in (FASTEST, SLOWER, "")]
    assert marks == ["→", "", ""]


def placed(model: Model, cut: str, *scales: float) -> SweepRow:
    return sweep_row(model.graph.cut(cut), [request(s) for s in scales], "here", model)


def test_the_fastest_in_words(model: Model) -> None:
    rows = [placed(model, "input", 1.0), placed(model, "pool1", 0.5), placed(model, "output", 2.0)]
    assert [r.place for r in rows] == ["all on the server", "split after pool1", "all on the edge"]
    assert in_words(rows[1:2], 3) == "split after pool1, 450 ms"
    assert in_words(rows, 1) == "all on the server, 900 ms; and 2 more"
    assert in_words(rows, 2) == "all on the server, 900 ms; split after pool1, 450 ms; and 1 more"


def test_what_may_be_the_fastest(model: Model) -> None:
    scales = (1, 1.1, 1.2), (1.1, 1.3, 9), (2, 3, 4), (4,)
    cuts = model.graph.chain()
    first, near, far, last = (placed(model, cut.name, *s) for cut, s in zip(cuts, scales, strict=False))
    assert close([last, far, near, first]) == [first, near]
    assert close([last, far]) == [far, last]  # two are never told apart by what was measured at different times
    assert close([last]) == [last]


def test_rows_come_back_from_their_file(model: Model, tmp_path: Path) -> None:
    rows = [row_of(model, 1.0), row_of(model, 1.0, 2.0)]
    write_rows(tmp_path / "s.csv", rows)
    assert read_rows(tmp_path / "s.csv") == rows
    assert (tmp_path / "s.csv").read_text().splitlines()[0] == ",".join(COLUMNS)
    assert COLUMNS[:5] == ("split_layer", "avg_compute", "avg_transfer", "avg_recv", "avg_rtt")


@pytest.mark.parametrize(
    ("old", "new", "words"), [("split_layer,", "layer,", "is not a sweep's CSV"), (",1000,", ",-1000,", "damaged")]
)
def test_other_files_are_refused(old: str, new: str, words: str, model: Model, tmp_path: Path) -> None:
    path = tmp_path / "s.csv"
    write_rows(path, [row_of(model, 1.0)])
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(UsageError, match=words):
        read_rows(path)
