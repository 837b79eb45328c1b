"""Rows → CSV and XLSX files, written whole or not at all."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from splitpoint.errors import MissingExtraError, StorageError


def write_atomic(path: Path, data: bytes) -> None:
    """Replace `path` with `data`; a full disk leaves the old file. StorageError says why it failed."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        part.write_bytes(data)
        part.replace(path)
    except OSError as exc:
        part.unlink(missing_ok=True)
        raise StorageError(f"{path} cannot be written: {exc.strerror or exc}") from exc


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
