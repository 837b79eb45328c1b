"""What every layer costs and makes, as rows and files."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from plans import profiles

from splitpoint.report.layer_study import COLUMNS, TABLE, cost_rows, draw, write_rows


def test_rows_are_the_profiles_numbers() -> None:
    edge, _ = profiles("zoo:lenet5", 60.0, 2.0)
    rows = cost_rows(edge)
    assert len(rows) == len(edge.graph.prefixes())
    assert sum(r.ms for r in rows) == pytest.approx(60.0, rel=1e-3)
    assert sum(r.share for r in rows) == pytest.approx(1.0, rel=1e-3)
    for k, row in enumerate(rows):
        assert row.head_ms + row.tail_ms == pytest.approx(60.0, rel=1e-3)
        assert row.crossing_bytes == edge.graph.prefixes()[k].nbytes
    assert {r.kind for r in rows if r.layer.startswith("conv")} == {"convolution"}
    assert {r.kind for r in rows if r.layer.startswith("fc")} <= {"linear", "activation"}


def test_files_have_every_column(tmp_path: Path) -> None:
    edge, _ = profiles("zoo:lenet5", 60.0, 2.0)
    rows = cost_rows(edge)
    write_rows(tmp_path / "l.csv", rows)
    with (tmp_path / "l.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert list(lines[0]) == list(COLUMNS)
    assert [line["layer"] for line in lines] == [r.layer for r in rows]
    cells = {column.title: column.cell(rows[1]) for column in TABLE}
    assert cells["layer"] == rows[1].layer
    assert cells["crosses behind it"]
    pytest.importorskip("matplotlib")
    draw(edge, rows, tmp_path / "l.png")
    assert (tmp_path / "l.png").read_bytes().startswith(b"\x89PNG")
