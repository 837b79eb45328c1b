"""Rows → CSV and XLSX files, written whole or not at all."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from splitpoint.errors import MissingExtraError
from splitpoint.files import check_writable, write_atomic

__all__ = ["check_writable", "write_atomic", "write_csv", "write_xlsx"]


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> None:
    """One line a row, with a header of `columns`."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomic(path, text.getvalue().encode())


def write_xlsx(path: Path, rows: Iterable[Mapping[str, Any]], columns: Sequence[str], title: str) -> None:
    """One sheet with a bold, frozen header row. MissingExtraError without openpyxl."""
    try:
        from openpyxl import Workbook
        from openpyxl.styles import Font
    except ImportError as exc:
        raise MissingExtraError("openpyxl", "xlsx", "write spreadsheets") from exc
    book = Workbook()
    sheet = book.active
    sheet.title = "".join(c for c in title if c not in r"[]:*?/\ ")[:31] or "sheet"
    sheet.append(list(columns))
    for row in rows:
        sheet.append([row.get(c) for c in columns])
    for cell in sheet[1]:
        cell.font = Font(bold=True)
    sheet.freeze_panes = "A2"
    for letter, name in zip("ABCDEFGHIJKLMNOPQRSTUVWXYZ", columns, strict=False):
        sheet.column_dimensions[letter].width = 40 if name in ("layer", "node") else max(12, len(name) + 2)
    data = io.BytesIO()
    book.save(data)
    write_atomic(path, data.getvalue())
