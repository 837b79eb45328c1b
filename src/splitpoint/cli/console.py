"""Tables and progress on the terminal."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text


@dataclass(frozen=True, slots=True)
class Column:
    """`keep` columns are never dropped when the terminal is narrow; the others go, the last one first."""

    title: str
    right: bool = True
    keep: bool = False


def out() -> Console:
    """Standard output. Piped, it is wide enough for every column and has no colour."""
    console = Console(highlight=False, soft_wrap=False)
    return console if console.is_terminal else Console(highlight=False, width=160)


def err() -> Console:
    return Console(stderr=True, highlight=False)


#: Longer cells are cut with an ellipsis where the terminal is too narrow for them.
_WIDEST = 34


def table(columns: Sequence[Column], rows: Sequence[Sequence[str]], *, console: Console) -> None:
    """Print a table that fits the terminal: columns that do not fit are left out (JSON and CSV have them all)."""
    widths = [
        min(_WIDEST, max([len(c.title), *(len(r[i]) for r in rows)])) + 3 for i, c in enumerate(columns)
    ]
    shown = list(range(len(columns)))
    while sum(widths[i] for i in shown) > console.width:
        spare = [i for i in shown if not columns[i].keep]
        if not spare:
            break
        shown.remove(spare[-1])
    made = Table(box=SIMPLE_HEAD, pad_edge=False)
    for i in shown:
        c = columns[i]
        made.add_column(c.title, justify="right" if c.right else "left", no_wrap=True, overflow="ellipsis")
    for row in rows:
        made.add_row(*(Text(row[i]) for i in shown))
    console.print(made)


def progress() -> Progress:
    """A progress bar on standard error: what, how many, time so far and left. Silent when that is no terminal."""
    console = err()
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not sys.stderr.isatty(),
    )
