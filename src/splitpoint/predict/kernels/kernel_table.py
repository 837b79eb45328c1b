"""Measured kernels as tables: one a kind, one CSV file a table, columns as in the Neurosurgeon replica's data."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from splitpoint.errors import InputError
from splitpoint.files import make_folder, read_file, write_atomic
from splitpoint.predict.kernels.kernel_kinds import KINDS, KernelKind
from splitpoint.profile.costs import Floats, Ints
from splitpoint.units import counted

#: The column with what was measured, in ms, and the one that says in which strip.
LATENCY, ORIGIN = "latency", "origin"
#: The seed's largest table has 300 kB and 10,000 rows.
_MOST_BYTES, _MOST_ROWS = 64 << 20, 500_000
#: The least number above 0; larger than any size, and a day in ms.
_LEAST_SIZE, _MOST_SIZE, _MOST_MS = np.nextafter(0.0, 1.0), 1e18, 86_400_000.0
#: Lines named in one sentence, and the reason of an empty line: nothing is wrong with it, and it is no row.
_NAMED, _EMPTY = 5, "empty"


@dataclass(frozen=True)
class Table:
    """Kernels of one kind: their columns (`kinds.KINDS`; all required ones, any optional ones) and what they took.

    `origin` is the number of the strip that a row was measured in, −1 where it ran alone; None: nobody says.
    """

    kind: str
    columns: Mapping[str, Floats]
    latency_ms: Floats
    origin: Ints | None = None

    def __len__(self) -> int:
        return len(self.latency_ms)

    def take(self, rows: NDArray[np.intp] | NDArray[np.bool_]) -> Table:
        """Only these rows."""
        return Table(
            self.kind,
            {name: values[rows] for name, values in self.columns.items()},
            self.latency_ms[rows],
            None if self.origin is None else self.origin[rows],
        )


def read_tables(folder: Path | str) -> tuple[dict[str, Table], list[str]]:
    """The tables in `folder` by kind, and a sentence for each file or row that was left out, and why.

    InputError if there is no folder or no table in it, or if a table lacks a column.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"there is no folder {folder} with tables such as conv_lat.csv")
    known = {kind.file: kind for kind in KINDS.values()}
    tables: dict[str, Table] = {}
    said: list[str] = []
    for path in sorted(folder.glob("*.csv")):
        if path.name not in known:
            said.append(f"{path.name} was skipped: tables are called {', '.join(sorted(known))}")
            continue
        table, sentences = read_table(path, known[path.name])
        said += sentences
        if len(table):
            tables[table.kind] = table
        else:
            said.append(f"{path.name} was skipped: it has no row to learn from")
    if not tables:
        why = f": {'; '.join(said)}" if said else f": they are called {', '.join(sorted(known))}"
        raise InputError(f"there is no table to learn from in {folder}{why}")
    return tables, said


def read_table(path: Path, kind: KernelKind) -> tuple[Table, list[str]]:
    """The table in one file, and a sentence for each reason why lines of it were left out."""
    try:
        text = read_file(path, _MOST_BYTES, "a table", "splitpoint calibrate-kernels --csv").decode("utf-8-sig")
        lines = list(csv.reader(io.StringIO(text), strict=True))
    except (UnicodeDecodeError, csv.Error) as exc:
        raise InputError(f"{path} is not a table of comma-separated values: {exc}") from exc
    if len(lines) > _MOST_ROWS:
        raise InputError(f"{path} has {len(lines):,} lines, and a table may have {_MOST_ROWS:,}")
    names = [name.strip() for name in lines[0]] if lines else []
    missing = [c for c in (*kind.required, LATENCY) if c not in names]
    if missing:
        raise InputError(
            f"{path} has no column {missing[0]}: a table of {kind.name} needs {', '.join(kind.required)} and {LATENCY}"
        )
    twice = next((c for c in names if names.count(c) > 1), None)
    if twice is not None:
        raise InputError(f"{path} has the column {twice} twice")
    wanted = [c for c in kind.columns if c in names]
    numbers, reasons = _numbers(lines[1:], names, [*wanted, LATENCY, *([ORIGIN] if ORIGIN in names else [])])
    for reason, bad in _nonsense(numbers, kind):
        for at in np.flatnonzero(bad & (reasons == "")):
            reasons[at] = reason
    good = reasons == ""
    columns = {name: numbers[name][good] for name in wanted}
    origin = numbers[ORIGIN][good].astype(np.int64) if ORIGIN in numbers else None
    return Table(kind.name, columns, numbers[LATENCY][good], origin), _sentences(path, reasons)


def write_tables(folder: Path | str, tables: Mapping[str, Table]) -> None:
    """One CSV file a kind, in a folder that is made where it is not there: the seed's columns first, latency last."""
    folder = Path(folder)
    make_folder(folder)
    for kind, table in tables.items():
        names = [c for c in KINDS[kind].columns if c in table.columns]
        columns = [table.columns[c].tolist() for c in names]
        if table.origin is not None:
            names, columns = [*names, ORIGIN], [*columns, table.origin.tolist()]
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow([*names, LATENCY])
        writer.writerows([f"{v:.12g}" for v in row] for row in zip(*columns, table.latency_ms.tolist(), strict=True))
        write_atomic(folder / KINDS[kind].file, out.getvalue().encode())


def _numbers(
    lines: list[list[str]], names: list[str], wanted: list[str]
) -> tuple[dict[str, Floats], NDArray[np.object_]]:
    """The wanted columns, NaN where a line has none, and a reason for each line that cannot be read ("" for others)."""
    places = [names.index(c) for c in wanted]
    values = np.full((len(lines), len(wanted)), np.nan)
    reasons = np.full(len(lines), "", dtype=object)
    for k, line in enumerate(lines):
        try:
            values[k] = [float(line[p]) for p in places]
        except IndexError:
            reasons[k] = "too few columns" if line else _EMPTY
        except ValueError:
            reasons[k] = "text where a number should be"
    return {c: values[:, j] for j, c in enumerate(wanted)}, reasons


def _nonsense(numbers: dict[str, Floats], kind: KernelKind) -> list[tuple[str, NDArray[np.bool_]]]:
    """Reasons to leave rows out, and which rows."""
    latency = numbers[LATENCY]
    reasons = [
        ("a latency that is not a number", ~np.isfinite(latency)),
        ("a latency that is zero or negative", latency <= 0),
        ("a latency of more than a day", latency > _MOST_MS),
    ]
    for name, values in numbers.items():
        if name == LATENCY:
            continue
        least = 0.0 if name == "FLOPs" or name in kind.optional else _LEAST_SIZE
        if name in (ORIGIN, "op"):  # −1: an operator that is in no list, the strip of a row alone
            least = -1.0
        reasons.append((f"a {name} that makes no sense", ~((values >= least) & (values <= _MOST_SIZE))))
    return reasons


def _sentences(path: Path, reasons: NDArray[np.object_]) -> list[str]:
    """``conv_lat.csv: left out 2 of 100 rows (lines 5, 9): a latency that is zero or negative``, one a reason."""
    rows = int((reasons != _EMPTY).sum())
    said = []
    for reason in dict.fromkeys(r for r in reasons.tolist() if r not in ("", _EMPTY)):
        at = np.flatnonzero(reasons == reason)
        lines = ", ".join(str(k + 2) for k in at[:_NAMED].tolist()) + (", …" if len(at) > _NAMED else "")
        line = "line" if len(at) == 1 else "lines"
        said.append(f"{path.name}: left out {len(at)} of {counted(rows, 'row')} ({line} {lines}): {reason}")
    return said
