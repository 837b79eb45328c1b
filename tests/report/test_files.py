"""CSV and spreadsheets: no text of a stranger is a formula."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from splitpoint.errors import UsageError
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


def test_numbers_are_written_as_a_person_would(tmp_path: Path) -> None:
    row = {"a": 3.3e-05, "b": 1e22, "c": 0.25, "d": -1.5e-07, "e": 7, "f": float("inf")}
    write_csv(tmp_path / "n.csv", [row], list(row))
    assert (tmp_path / "n.csv").read_text() == "a,b,c,d,e,f\n0.000033,10000000000000000000000,0.25,-0.00000015,7,inf\n"


def test_a_sheet_is_added_to_a_workbook_that_is_there(tmp_path: Path) -> None:
    openpyxl = pytest.importorskip("openpyxl")
    path = tmp_path / "study.xlsx"
    write_xlsx(path, [{"layer": "conv1", "ms": 1.0}], ["layer", "ms"], "alexnet")
    write_xlsx(path, [{"layer": "conv1", "ms": 2.0}], ["layer", "ms"], "vgg16")
    write_xlsx(path, [{"layer": "conv1", "ms": 3.0}], ["layer", "ms"], "alexnet")
    book = openpyxl.load_workbook(path)
    assert book.sheetnames == ["alexnet", "vgg16"]
    assert [book[name]["B2"].value for name in book.sheetnames] == [3, 2]
    (tmp_path / "words.xlsx").write_text("words")
    with pytest.raises(UsageError, match=r"no \.xlsx workbook to add a sheet to"):
        write_xlsx(tmp_path / "words.xlsx", [], ["layer"], "alexnet")
    assert (tmp_path / "words.xlsx").read_text() == "words"
