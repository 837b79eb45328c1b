"""An answer as a person reads it, as a line of JSON, and where its milliseconds went; all answers of a run as rows."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import click
import msgspec
from rich.console import Console

from splitpoint import images
from splitpoint.cli import console
from splitpoint.cli.fidelity import Fidelity
from splitpoint.errors import InputError
from splitpoint.images import InputSpec
from splitpoint.runtime.result import Result
from splitpoint.tensors import Array, npz_bytes
from splitpoint.text import plain, valid
from splitpoint.trace import NUMBERS, OTHERS, Trace, stage_ms
from splitpoint.units import ms


def answer(outputs: Mapping[str, Array], spec: InputSpec | None, count: int = 3) -> str:
    """Labels with probabilities for a classifier; names, types and ranges of the outputs otherwise."""
    labels = _labels(outputs, spec)
    if labels is not None:
        return ", ".join(f"{plain(label)} {probability:.0%}" for label, probability in labels[:count])
    return ", ".join(_described(plain(name), value) for name, value in outputs.items())


def _labels(outputs: Mapping[str, Array], spec: InputSpec | None) -> list[tuple[str, float]] | None:
    """Labels of a classifier's answer; None where there are none to give (a batch of several, for instance)."""
    if spec is None or spec.task != "classify":
        return None
    try:
        return images.classify(outputs, spec)
    except InputError:
        return None  # the answer is there all the same: it is described by its numbers


def _described(name: str, value: Array) -> str:
    shape = ",".join(map(str, value.shape))
    if value.dtype.kind == "f" and value.size:
        return f"{name} {value.dtype.name}[{shape}] {value.min():.3g}…{value.max():.3g}"
    return f"{name} {value.dtype.name}[{shape}]"


def as_json(
    name: str, outputs: Mapping[str, Array], spec: InputSpec | None, trace: Trace, **more: Any
) -> dict[str, Any]:
    """One line of `--json`: labels or output specs, stages and spans in milliseconds."""
    row: dict[str, Any] = {"input": valid(name)}
    labels = _labels(outputs, spec)
    if labels is not None:
        row["labels"] = [{"label": text, "probability": p} for text, p in labels]
    row["outputs"] = {k: {"dtype": v.dtype.name, "shape": list(v.shape)} for k, v in outputs.items()}
    row["ms"] = {k: round(v, 4) for k, v in stage_ms(trace).items()}
    row["spans_ms"] = {k: round(v, 4) for k, v in trace.stages().items()}
    return row | more


#: Characters of a number's column.
_NUMBER = 7
#: A camera may run for days: medians are those of so many last answers.
_REMEMBERED = 10_000


class Lines:
    """A table that is printed row by row, as answers come."""

    def __init__(self, width: int, names: Sequence[str]) -> None:
        self.name_width = min(14 if width < 100 else 28, max([6, *(len(n) for n in names)]))
        self.answer_width = min(48, max(9, width - self.name_width - _NUMBER * len(NUMBERS) - 6))
        self._rows: deque[Mapping[str, float]] = deque(maxlen=_REMEMBERED)

    def header(self) -> str:
        titles = "".join(f"{t:>{_NUMBER}}" for t in NUMBERS)
        return f"{'input':<{self.name_width}}  {'answer':<{self.answer_width}}{titles}  ms"

    def row(self, name: str, text: str, numbers: Mapping[str, float]) -> str:
        """One more answer, with what its `Result.numbers` are."""
        self._rows.append(numbers)
        return self._line(name, text, numbers)

    def medians(self) -> str:
        """The middle value of each column over all rows."""
        middle = {name: median(row[name] for row in self._rows) for name in NUMBERS}
        return self._line("median", f"of {len(self._rows)}", middle)

    def _line(self, name: str, text: str, numbers: Mapping[str, float]) -> str:
        cells = "".join(f"{show(numbers[name]):>{_NUMBER}}" for name, show in NUMBERS.items())
        return f"{_fit(name, self.name_width)}  {_fit(text, self.answer_width)}{cells}"


def _fit(text: str, width: int) -> str:
    return f"{text:<{width}}" if len(text) <= width else text[: width - 1] + "…"


class Tag(NamedTuple):
    """What a request brings along: its input's name, the level of the option it was begun with (0: as planned), a
    shorter name for tables, and what its cut stood on (`auto_planning.Stand`)."""

    name: str
    level: int = 0
    label: str = ""
    plan: str = ""


class AnswerRows:
    """A table, row by row as answers come, or a line of JSON each; `about` is printed above the table.

    With `keep`, the outputs are remembered for `saved`; with `in_rows`, all numbers as rows of a CSV file in `flat`,
    with these `columns`. `fidelity` says what the answers are worth.
    """

    def __init__(
        self, spec: Callable[[], InputSpec | None], labels: Sequence[str], about: Callable[[], str], *, as_json: bool,
        keep: bool, in_rows: bool = False, fidelity: Fidelity | None = None,
    ) -> None:  # fmt: skip
        self.fidelity = fidelity
        self._spec_now, self._about, self.as_json = spec, about, as_json
        self._lines = Lines(console.out().width, labels)
        # Rows and a live bar on one terminal must come from one console.
        self.terminal: Console | None = console.out() if sys.stdout.isatty() else None
        self.outputs: dict[str, Mapping[str, Array]] = {}
        self._keep, self._in_rows = keep, in_rows
        self.flat: list[dict[str, object]] = []
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
        if self.fidelity is not None:
            self.fidelity.add(result)
        if self._keep:
            self.outputs[self._key(name)] = result.outputs
        if self._in_rows:
            self.flat.append(self._flat(name, result))
        if self.as_json:
            yield console.as_json(self._row(name, result))
            return
        if not self.printed:
            yield self._about()
            yield self._lines.header()
        short = plain(result.tag.label) or ("-" if name == "-" else plain(Path(name).name))
        line = self._lines.row(short, answer(result.outputs, self._spec_now()), result.numbers)
        yield "  ".join([line, *_remarks(result)])

    def _row(self, name: str, result: Result) -> Mapping[str, object]:
        more: dict[str, object] = {name: result.numbers[name] for name in OTHERS}
        more |= {name: getattr(result, name) for name in ("cut", "codecs", "up_nbytes", "clock_error_ms")}
        if self.fidelity is not None and (kept := self.fidelity.of(result)) is not None:
            more["kept"] = msgspec.to_builtins(kept)
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
        return as_json(name, result.outputs, self._spec_now(), result.trace, **more)

    columns = (
        "input", "answer", *(f"{name}_ms" for name in NUMBERS), "cut", "codecs", "up_nbytes", "clock_error_ms",
        "attempts", "fallback", "deadline_ms", "missed_ms", "plan",
    )  # fmt: skip

    def _flat(self, name: str, result: Result) -> dict[str, object]:
        numbers = {f"{number}_ms": round(result.numbers[number], 4) for number in NUMBERS}
        codecs = " ".join(f"{tensor}={codec}" for tensor, codec in result.codecs.items())
        told = {n: getattr(result, n) for n in ("cut", "up_nbytes", "clock_error_ms", "attempts", "fallback")}
        deadline = {"deadline_ms": result.deadline_s * 1e3, "missed_ms": missed_ms(result)} if result.deadline_s else {}
        text = answer(result.outputs, self._spec_now(), 1)
        return {"input": name, "answer": text, "codecs": codecs, "plan": result.tag.plan} | numbers | told | deadline

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


def missed_ms(result: Result) -> float:
    """By how much a row's total is more than the deadline; 0 if it is not, or there is none."""
    return max(0.0, result.total_ms - result.deadline_s * 1e3) if result.deadline_s else 0.0


def _remarks(result: Result) -> Iterator[str]:
    """What a row says beside its numbers."""
    if result.fallback:
        yield f"finished here: {result.fallback}"
    if missed := missed_ms(result):
        yield f"{ms(missed)} ms after the deadline"
