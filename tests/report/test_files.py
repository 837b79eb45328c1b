"""CSV and spreadsheets: no text of a stranger is a formula."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from splitpoint.report.files import as_written, safe, write_csv, write_xlsx

ROWS: list[Mapping[str, Any]] = [
    {"layer": name, "ms": -1.5}
    for name in ('=HYPERLINK("http://x","y")', "+1+1", "-2*3", "@SUM(A1)", "\t=1", "conv1", "-1.5", "#N/A")
]


def test_no_cell_of_a_spreadsheet_is_a_formula(tmp_path: Path) -> None:
    openpyxl = pytest.importorskip("openpyxl")
    path = tmp_path / "a.xlsx"
    write_xlsx(path, [*ROWS, {"layer": "bell\a", "ms": None}], ["layer", "ms"], "sheet")
    sheet = openpyxl.load_workbook(path).active
    cells = [row[0] for row in sheet.iter_rows(min_row=2)]
    assert {c.data_type for c in cells} == {"s"}
    assert [c.value for c in cells] == [*(r["layer"] for r in ROWS), "bell\ufffd"]
    assert sheet["B2"].value == -1.5


def test_no_cell_of_a_csv_begins_a_formula(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    write_csv(path, ROWS, ["layer", "ms"])
    with path.open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert [line["layer"][0] for line in lines] == ["'"] * 5 + ["c", "-", "#"]
    assert {line["ms"] for line in lines} == {"-1.5"}
    assert [as_written(line["layer"]) for line in lines] == [r["layer"] for r in ROWS]
    assert safe("-inf") == "-inf"
