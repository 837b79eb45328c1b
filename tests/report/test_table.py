"""Columns: titles and cells of a row, in one place."""

from __future__ import annotations

from splitpoint.report.table import Column, fields_of, number_columns
from splitpoint.trace import STAGES, by_stage


def test_a_column_shows_what_it_makes_of_a_row() -> None:
    columns: list[Column[int]] = [Column("n", str), Column("squared", lambda n: str(n * n), keep=True)]
    assert [[c.cell(n) for c in columns] for n in (2, 3)] == [["2", "4"], ["3", "9"]]


def test_columns_of_cells_are_in_the_order_of_their_titles() -> None:
    columns = fields_of(("layer", "ms", "spare"), left=("layer",), keep=("layer", "ms"))
    assert [c.title for c in columns] == ["layer", "ms", "spare"]
    assert [c.cell(("conv1", "1.00", "x")) for c in columns] == ["conv1", "1.00", "x"]
    assert [c.right for c in columns] == [False, True, True]
    assert [c.keep for c in columns] == [True, True, False]


def test_every_stage_but_reading_inputs_has_a_column() -> None:
    columns = number_columns(STAGES[1:], by_stage)
    assert [c.title for c in columns] == [s for s in STAGES if s != "decode"]
    spans = {"prepare": 100.0, "head": 1.0, "local": 2.0, "encode": 4.0, "up": 8.0, "down": 16.0, "queue": 32.0,
             "decode": 0.5, "tail": 0.25, "reply": 0.125}  # fmt: skip
    assert [c.cell(spans) for c in columns] == ["3.00", "4.00", "24.0", "32.0", "0.88"]
