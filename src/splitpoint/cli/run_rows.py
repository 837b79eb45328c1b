"""What `splitpoint run` prints for each answer, and what it keeps of it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import click
from rich.console import Console

from splitpoint.cli import answers
from splitpoint.cli.console import as_json, out
from splitpoint.images import InputSpec
from splitpoint.runtime.result import Result
from splitpoint.tensors import Array, npz_bytes
from splitpoint.text import plain, valid
from splitpoint.trace import Span, Trace
from splitpoint.units import ms


class Tag(NamedTuple):
    """What a request brings along: its input's name, the level of the option it was begun with (0: as planned), a
    shorter name for tables, and what the plan stood on then (`auto_planning.Stand`)."""

    name: str
    level: int = 0
    label: str = ""
    plan: str = ""


class AnswerRows:
    """A table, row by row as answers come, or a line of JSON each; `about` is printed above the table.

    With `keep`, the outputs are remembered for `saved`.
    """

    def __init__(
        self,
        spec: Callable[[], InputSpec | None],
        labels: Sequence[str],
        about: Callable[[], str],
        *,
        as_json: bool,
        keep: bool,
    ) -> None:
        self._spec_now, self._about, self.as_json = spec, about, as_json
        self._lines = answers.Lines(out().width, labels)
        # Rows and a live bar on one terminal must come from one console.
        self.terminal: Console | None = out() if sys.stdout.isatty() else None
        self.outputs: dict[str, Mapping[str, Array]] = {}
        self._keep = keep
        self.printed = 0

    def print(self, result: Result) -> None:
        """One answer; the first brings the header."""
        for line in self._of(result):
            if self.terminal:
                self.terminal.print(line, highlight=False, soft_wrap=True)
            else:
                click.echo(line.encode() if self.as_json else line)  # JSON is UTF-8, whatever the terminal is
        self.printed += 1

    def _of(self, result: Result) -> Iterator[str]:
        name = result.tag.name
        if self._keep:
            self.outputs[self._key(name)] = result.outputs
        if self.as_json:
            yield as_json(self._row(name, result))
            return
        if not self.printed:
            yield self._about()
            yield self._lines.header()
        short = plain(result.tag.label) or ("-" if name == "-" else plain(Path(name).name))
        line = self._lines.row(short, answers.answer(result.outputs, self._spec_now()), whole_trace(result))
        yield "  ".join([line, *_remarks(result)])

    def _row(self, name: str, result: Result) -> Mapping[str, object]:
        more: dict[str, object] = {"cut": result.cut, "codecs": result.codecs, "up_nbytes": result.up_nbytes,
                                   "clock_error_ms": result.clock_error_ms}  # fmt: skip
        if result.tag.plan:
            more["plan"] = result.tag.plan
        if result.fallback:
            more["fallback"] = result.fallback
        if result.attempts > 1:
            more["attempts"] = result.attempts
        if result.deadline_s:
            more |= {"deadline_ms": result.deadline_s * 1e3, "missed_ms": round(missed_ms(result), 4)}
        if result.tag.level:
            more["degraded"] = result.tag.level
        return answers.as_json(name, result.outputs, self._spec_now(), whole_trace(result), **more)

    def _key(self, name: str) -> str:
        stem, number = ("stdin" if name == "-" else valid(Path(name).stem)), 2
        key = stem
        while key in self.outputs:
            key, number = f"{stem}-{number}", number + 1
        return key

    def saved(self) -> bytes:
        """All outputs as an `.npz`: arrays are called ``<file's stem>/<output>``."""
        arrays = {f"{key}/{name}": v for key, outputs in self.outputs.items() for name, v in outputs.items()}
        return npz_bytes(arrays)

    def medians(self) -> None:
        """The table's last row, if there are several."""
        if not self.as_json and self.printed > 1:
            click.echo(self._lines.medians())


def whole_trace(result: Result) -> Trace:
    """The trace of `result` with the time that its frame waited for those before it: no millisecond is left out."""
    trace = result.trace
    if not result.spans:
        return trace
    held = Span("held", max(s.end for s in result.spans), result.marks.started)
    return Trace((*trace.spans[: len(result.spans)], held, *trace.spans[len(result.spans) :])) if held.ms > 0 else trace


def total_ms(result: Result) -> float:
    """What a row's last column says: from the frame to its answer."""
    return sum(s.ms for s in whole_trace(result).spans)


def missed_ms(result: Result) -> float:
    """By how much that is more than the deadline; 0 if it is not, or there is none."""
    return max(0.0, total_ms(result) - result.deadline_s * 1e3) if result.deadline_s else 0.0


def _remarks(result: Result) -> Iterator[str]:
    """What a row says beside its numbers."""
    if result.fallback:
        yield f"finished here: {result.fallback}"
    if missed := missed_ms(result):
        yield f"{ms(missed)} ms after the deadline"
