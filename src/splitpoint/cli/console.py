"""Tables and progress on the terminal."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from time import monotonic
from typing import Any, TypeVar

import click
import msgspec
import rich.progress as bars
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import Progress, ProgressColumn, Task, TextColumn
from rich.table import Table
from rich.text import Text

from splitpoint.cli.stdio import styled
from splitpoint.report.table import Column
from splitpoint.text import end_of, harmless, plain

R = TypeVar("R")


class _Console(Console):
    """Nothing in a text of somebody else can make the terminal act, and no text is markup: `line` says what is bold."""

    def print(self, *objects: Any, **options: Any) -> None:
        super().print(*map(_harmless, objects), **{**options, "markup": False})


def as_json(value: Any) -> str:
    """One line of JSON, in which nothing makes a terminal act."""
    return harmless(msgspec.json.encode(value).decode())


def put_json(value: Any) -> None:
    """Prints it as UTF-8, which JSON is, whatever the terminal's encoding."""
    click.echo(as_json(value).encode())


def bold(name: str) -> Text:
    """`name` as it is, in bold: a part of a `line`."""
    return Text(harmless(name), "bold")


def line(*parts: str | Text) -> Text:
    """`parts` side by side, to be printed."""
    return Text.assemble(*(harmless(part) if isinstance(part, str) else part for part in parts))


def _harmless(thing: Any) -> Any:
    text = thing.plain if isinstance(thing, Text) else thing
    return harmless(text) if isinstance(text, str) and harmless(text) != text else thing


def say(*lines: object) -> None:
    """Each on a line of standard error: what is done while a command works."""
    for each in lines:
        click.echo(str(each), err=True)


def out() -> Console:
    """Standard output. Piped, it is wide enough for every column and has no colour."""
    console = _Console(file=styled(sys.stdout), highlight=False, soft_wrap=False)
    return console if console.is_terminal else _Console(file=styled(sys.stdout), highlight=False, width=160)


def err() -> Console:
    return _Console(file=styled(sys.stderr), highlight=False)


#: The widest a column of names may be where another column would have to go for it.
_NAMES = 34
_GAP = 3


def table(columns: Sequence[Column[R]], rows: Sequence[R], *, console: Console) -> None:
    """Print a table that fits the terminal: columns that do not fit are left out (JSON and CSV have them all).

    Names (the first column that is not right-aligned) are shortened at the front: the end of a path tells more.
    """
    cells = [[plain(c.cell(row)) for c in columns] for row in rows]
    widths = [max([len(c.title), *(len(r[i]) for r in cells)]) for i, c in enumerate(columns)]
    names = next((i for i, c in enumerate(columns) if not c.right), 0)
    full, widths[names] = widths[names], min(widths[names], _NAMES)
    shown = list(range(len(columns)))
    while sum(widths[i] + _GAP for i in shown) > console.width:
        spare = [i for i in shown if not columns[i].keep]
        if not spare:
            break
        shown.remove(spare[-1])
    others = sum(widths[i] + _GAP for i in shown if i != names)
    widths[names] = max(12, min(full, console.width - others - _GAP))
    printed = Table(box=SIMPLE_HEAD, pad_edge=False)
    for i in shown:
        printed.add_column(columns[i].title, justify="right" if columns[i].right else "left", no_wrap=True)
    for row in cells:
        printed.add_row(*(Text(end_of(row[i], widths[i])) for i in shown))
    # Where even these do not fit, lines that the terminal breaks say more than numbers that were cut.
    console.width = max(console.width, sum(widths[i] + _GAP for i in shown))
    console.print(printed, crop=False)


class _Words(TextColumn):
    """What a task says of itself, which may name what is somebody else's."""

    def render(self, task: Task) -> Text:
        return Text(plain(self.text_format.format(task=task)))


def progress(console: Console | None = None) -> Progress:
    """A progress bar (on standard error, or `console`): what, how many, time so far and left. Only on a terminal."""
    left = (TextColumn("left"), bars.TimeRemainingColumn())
    return _bar(console or err(), bars.BarColumn(), bars.MofNCompleteColumn(), bars.TimeElapsedColumn(), *left)


#: Where no bar can move, a line this often says how far it is.
_SAID_EVERY_S = 10.0


@contextmanager
def steps(what: str, *, clock: Callable[[], float] = monotonic) -> Iterator[Callable[[int, int], None]]:
    """Progress of `what`, for work of minutes: what is given takes how many steps are done, of how many. A bar on a
    terminal, elsewhere (a log) a line every ten seconds."""
    with progress() as bar:
        task = bar.add_task(what, total=None)
        began_s = said_s = clock()
        last = 0

        def on_progress(done: int, total: int) -> None:
            nonlocal began_s, said_s, last
            bar.update(task, completed=done, total=total)
            if done < last:  # it begins anew, with what is measured again
                began_s = clock()
            last = done
            if bar.disable and (now_s := clock()) - said_s >= _SAID_EVERY_S:
                said_s, spent_s = now_s, now_s - began_s
                left_s = spent_s * (total / done - 1) if done else 0.0
                say(f"{what}: {done} of {total}, {spent_s:.0f} s, about {left_s:.0f} s left")

        yield on_progress


def countdown() -> Progress:
    """A progress bar of time (on standard error): what, how far, time so far and what its task says is `left`."""
    return _bar(err(), bars.BarColumn(), bars.TimeElapsedColumn(), _Words("{task.fields[left]}"))


def _bar(console: Console, *columns: ProgressColumn) -> Progress:
    can_move = console.is_terminal and os.environ.get("TERM", "dumb") not in ("dumb", "unknown", "")
    return Progress(_Words("{task.description}"), *columns, console=console, transient=True, disable=not can_move)


@contextmanager
def waiting(text: str) -> Iterator[Callable[[str], None]]:
    """A line that moves (on standard error) while something takes long; what is given changes its text."""
    with err().status(Text(plain(text))) as status:
        yield lambda text: status.update(Text(plain(text)))
