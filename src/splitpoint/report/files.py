"""Rows → CSV and XLSX files, written whole or not at all.

Names of layers may come from a stranger's model or server: no spreadsheet may take one for a formula.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

from splitpoint.errors import MissingExtraError, UsageError
from splitpoint.files import check_writable, is_special, read_file, write_atomic

#: Of a workbook that a sheet is added to.
_MOST_BYTES = 256 << 20


def write_csv(
    path: Path, rows: Sequence[Mapping[str, Any]], columns: Sequence[str], *, header: bool = True
) -> None:  # fmt: skip
    """One line a row, with a `header` of `columns`."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns, extrasaction="ignore", lineterminator="\n")
    if header:
        writer.writeheader()
    writer.writerows({name: _plain(safe(value)) for name, value in row.items()} for row in rows)
    write_atomic(path, text.getvalue().encode())


def _plain(value: Any) -> Any:
    """A small or large number without an exponent: ``0.000033``."""
    text = repr(value) if isinstance(value, float) else ""
    return format(Decimal(text), "f") if "e" in text else value


def safe(value: Any) -> Any:
    """`value` for a CSV file: a text that a spreadsheet would run as a formula gets an apostrophe before it.

    >>> safe("=HYPERLINK(1)"), safe("conv1"), safe("-1.5"), safe(-1.5)
    ("'=HYPERLINK(1)", 'conv1', '-1.5', -1.5)
    """
    if not isinstance(value, str) or not value.startswith(_BEGINS_FORMULA):
        return value
    try:
        float(value)
    except ValueError:
        return f"'{value}"
    return value


def as_written(text: str) -> str:
    """The text that `safe` was given."""
    return text[1:] if text[:1] == "'" and text[1:].startswith(_BEGINS_FORMULA) else text


#: What a cell of a CSV file must not begin with, unless it is a number.
_BEGINS_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def write_xlsx(path: Path, rows: Iterable[Mapping[str, Any]], columns: Sequence[str], title: str) -> None:
    """A sheet called `title` with a bold, frozen header row: of a new workbook, or of that which is there, whose other
    sheets stay (one of this name is replaced). UsageError for a file that is none, MissingExtraError without openpyxl.
    """
    try:
        from openpyxl import Workbook, load_workbook
        from openpyxl.cell.cell import ILLEGAL_CHARACTERS_RE
        from openpyxl.styles import Font
    except ImportError as exc:
        raise MissingExtraError("openpyxl", "xlsx", "write spreadsheets") from exc
    name = "".join(c for c in title if c not in r"[]:*?/\ ")[:31] or "sheet"
    book = None
    if not is_special(path) and path.exists() and path.stat().st_size:
        try:
            book = load_workbook(io.BytesIO(read_file(path, _MOST_BYTES, "a spreadsheet")))
        except (BadZipFile, KeyError, ValueError, TypeError) as exc:
            raise UsageError(f"{path} is there, and is no .xlsx workbook to add a sheet to: name another file") from exc
    if book is None:
        book = Workbook()
        book.remove(book.active)
    place = book.sheetnames.index(name) if name in book.sheetnames else None
    if place is not None:
        book.remove(book[name])
    sheet = book.create_sheet(name, place)
    sheet.append(list(columns))
    for number, row in enumerate(rows, 2):
        for place, name in enumerate(columns, 1):
            value = row.get(name)
            if isinstance(value, str):
                sheet.cell(number, place, ILLEGAL_CHARACTERS_RE.sub("\ufffd", value)).data_type = "s"
            else:
                sheet.cell(number, place, value)
    for cell in sheet[1]:
        cell.font = Font(bold=True)
    sheet.freeze_panes = "A2"
    for letter, name in zip("ABCDEFGHIJKLMNOPQRSTUVWXYZ", columns, strict=False):
        sheet.column_dimensions[letter].width = 40 if name in ("layer", "node") else max(12, len(name) + 2)
    data = io.BytesIO()
    book.save(data)
    write_atomic(path, data.getvalue())


@contextmanager
def picture(path: Path, *, panels: int = 1, size: tuple[float, float]) -> Iterator[tuple[Any, list[Any]]]:
    """A matplotlib figure of `size` (inches) and its panels, side by side, to be drawn in the ``with``; written at its
    end as the file's name says, a PNG where it says nothing. MissingExtraError without matplotlib, StorageError where
    it cannot be written."""
    try:
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot as plt
    except ImportError as exc:
        raise MissingExtraError("matplotlib", "plot", "draw pictures") from exc
    check_writable(path)
    figure, axes = plt.subplots(1, panels, figsize=size, layout="constrained", squeeze=False)
    try:
        yield figure, list(axes[0])
        ending = path.suffix.lower().lstrip(".")
        data = io.BytesIO()
        figure.savefig(data, dpi=130, format=ending if ending in figure.canvas.get_supported_filetypes() else "png")
        write_atomic(path, data.getvalue())
    finally:
        plt.close(figure)


def bare(axes: Any, *sides: str) -> None:
    """Leaves out these sides of the frame around a panel."""
    for side in sides:
        axes.spines[side].set_visible(False)
