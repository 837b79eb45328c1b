"""Tables and progress on the terminal."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from time import monotonic
from typing import Any, TypeVar

import click
import msgspec
import rich.progress as bars
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import Progress, ProgressColumn, Task, TaskID, TextColumn
from rich.table import Table
from rich.text import Text

from splitpoint.cli.stdio import styled
from splitpoint.report.table import Column
from splitpoint.text import end_of, harmless, plain
from splitpoint.units import size

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


#: Where nothing can move (a log, a pipe), a line this often says how far long work is; what only waits says soon what
#: it waits for.
_EVERY_S, _SOON_S = 10.0, 1.0


def how_far(what: str, done: str, spent_s: float, left_s: float | None) -> str:
    """``sweeping: 12 of 65, 30 s, about 130 s left``."""
    left = "" if left_s is None else f", about {left_s:.0f} s left"
    return f"{what}: {done + ', ' if done else ''}{spent_s:.0f} s{left}"


@contextmanager
def telling(text: Callable[[], str], *, first_s: float | None = None) -> Iterator[None]:
    """Inside, what `text` says by then is a line of standard error every ten seconds, the first one after `first_s`.

    Of the standard error of now: what PyTorch exports under, for instance, takes it away for a while.
    """
    stream, ended = sys.stderr, threading.Event()

    def tell() -> None:
        wait_s = _EVERY_S if first_s is None else first_s
        while not ended.wait(wait_s):
            if line := text():
                click.echo(plain(line), file=stream)
            wait_s = _EVERY_S

    teller = threading.Thread(target=tell, name="progress", daemon=True)
    teller.start()
    try:
        yield
    finally:
        ended.set()
        teller.join()


class _Bar(Progress):
    """Tasks as bars that move, or, where nothing can, as lines."""

    def __init__(self, *columns: ProgressColumn, console: Console, lines: bool = True) -> None:
        super().__init__(*columns, console=console, transient=True, disable=not _can_move(console))
        self._lines = telling(self._told) if lines and self.disable else None
        self._before: dict[TaskID, float] = {}

    def add_task(
        self, description: str, start: bool = True, total: float | None = 100.0, completed: int = 0,
        visible: bool = True, **fields: Any,
    ) -> TaskID:  # fmt: skip
        task = super().add_task(description, start, total, completed, visible, **fields)
        self._before[task] = completed
        return task

    def start(self) -> None:
        super().start()
        if self._lines is not None:
            self._lines.__enter__()

    def stop(self) -> None:
        super().stop()
        if self._lines is not None:
            self._lines.__exit__(None, None, None)

    def _told(self) -> str:
        return "; ".join(self._line(task) for task in self.tasks if not task.finished)

    def _line(self, task: Task) -> str:
        spent_s = task.elapsed or 0.0
        if "left" in task.fields:
            return (
                f"{how_far(task.description, '', spent_s, None)}{', ' * bool(task.fields['left'])}{task.fields['left']}"
            )
        if task.total is None:
            return how_far(task.description, "", spent_s, None)
        done = task.fields.get("far") or f"{task.completed:.0f} of {task.total:.0f}"
        now = task.completed - self._before.get(task.id, 0.0)  # what an earlier run has done took no time of this one
        left_s = spent_s * (task.total - task.completed) / now if now else None
        return how_far(task.description, done, spent_s, left_s)


def progress(console: Console | None = None, *, lines: bool = True) -> Progress:
    """A progress bar (on standard error, or `console`): what, how many, time so far and left. Without a terminal, and
    with `lines`, a line every ten seconds."""
    often = (bars.MofNCompleteColumn(), bars.TimeElapsedColumn(), TextColumn("left"), bars.TimeRemainingColumn())
    columns = (_Words("{task.description}"), bars.BarColumn(), *often)
    return _Bar(*columns, console=console or err(), lines=lines)


@contextmanager
def steps(what: str, show: Callable[[int], str] = str) -> Iterator[Callable[[int, int], None]]:
    """Progress of `what`: what is given takes how much is done, of how much, each as `show` writes it."""
    columns = (_Words("{task.description}"), bars.BarColumn(), _Words("{task.fields[far]}"), bars.TimeElapsedColumn())
    with _Bar(*columns, TextColumn("left"), bars.TimeRemainingColumn(), console=err()) as bar:
        task = bar.add_task(what, total=None, far="")

        def on_progress(done: int, total: int) -> None:
            if done < bar.tasks[0].completed:  # it begins anew, with what is measured again
                bar.reset(task)
            bar.update(task, completed=done, total=total, far=f"{show(done)} of {show(total)}")

        yield on_progress


def countdown() -> Progress:
    """A progress bar of time (on standard error): what, how far, time so far and what its task says is `left`."""
    columns = (_Words("{task.description}"), bars.BarColumn(), bars.TimeElapsedColumn(), _Words("{task.fields[left]}"))
    return _Bar(*columns, console=err())


def _can_move(console: Console) -> bool:
    return console.is_terminal and os.environ.get("TERM", "dumb") not in ("dumb", "unknown", "")


@contextmanager
def waiting(text: str) -> Iterator[Callable[[str], None]]:
    """A line that moves (on standard error) while something takes long, and how long it has taken; what is given
    changes its text. Without a terminal a line soon, and every ten seconds."""
    console, began_s = err(), monotonic()
    said = [plain(text)]

    def change(text: str) -> None:
        said[:] = [plain(text)]

    if not _can_move(console):
        with telling(lambda: how_far(said[0], "", monotonic() - began_s, None), first_s=_SOON_S):
            yield change
        return
    columns = (bars.SpinnerColumn(), _Words("{task.description}"), bars.TimeElapsedColumn())
    with _Bar(*columns, console=console) as bar:
        task = bar.add_task(said[0], total=None)
        yield lambda text: bar.update(task, description=plain(text))


def fetching(what: str) -> Callable[[int, int], None]:
    """For `Edge(on_progress=)`: a line every ten seconds while weights come, of bytes and the time left."""
    began_s = said_s = monotonic()
    before = 0

    def on_progress(done: int, total: int) -> None:
        nonlocal began_s, said_s, before
        now_s = monotonic()
        if done < before:  # another download
            began_s = said_s = now_s
        before = done
        if now_s - said_s >= _EVERY_S and done < total:
            said_s, spent_s = now_s, now_s - began_s
            say(how_far(what, f"{size(done)} of {size(total)}", spent_s, spent_s * (total / done - 1)))

    return on_progress
