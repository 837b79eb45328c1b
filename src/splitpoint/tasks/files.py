"""A queue as a file (docs/tasks.md has the fields): TOML, every mistake in it told at once, with its line.

Files are those in its own folder, or below. Python code is not named (package.module:function).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from splitpoint.errors import InputError, ServerError, nearest
from splitpoint.files import named, read_text
from splitpoint.models.names import is_named, with_weights
from splitpoint.parsing import MalformedError, parse_toml
from splitpoint.tasks.task import MOST_PRIORITY, MOST_S, MOST_TASKS, Task
from splitpoint.text import plain
from splitpoint.units import counted

_MOST_BYTES = 16 << 20
_MOST_TEXT = 1000
_TIME = re.compile(r"([0-9]*\.?[0-9]+)\s*(ms|s|min)")
_UNITS = {"ms": 1e-3, "s": 1.0, "min": 60.0}
_HEADER = re.compile(r"\s*\[\[\s*tasks\s*\]\]")
#: Texts and comments; quotes in them begin no other text.
_QUOTED = re.compile(r"""("{3}|'{3}).*?(?:\1|\Z)|"(?:\\.|[^"\\\n])*"|'[^'\n]*'|#.*?$""", re.DOTALL | re.MULTILINE)
_KEY = re.compile(r"""\s*["']?([A-Za-z0-9_-]+)["']?\s*=""")


class Mistake(NamedTuple):
    """What is wrong in a line; 0 where no line can be named."""

    line: int
    text: str


class Entry(NamedTuple):
    """A ``[[tasks]]`` table that names a model: where, which (and with which weights), and its tasks; none where
    something in it is wrong."""

    line: int
    source: tuple[str, str]
    tasks: tuple[Task, ...]


def load_tasks(path: Path, check: Callable[[Entry], str] = lambda entry: "") -> list[Task]:
    """The tasks in `path`. InputError with every mistake there is; `check` says what is wrong with an entry's model.

    Where `check` raises a ServerError, nobody says which models there are: then the other mistakes are told, if there
    are any.
    """
    entries, mistakes = read_tasks(path)
    for entry in entries:
        try:
            said = check(entry)
        except ServerError:
            refuse(path, mistakes)
            raise
        if said:
            mistakes.append(Mistake(entry.line, said))
    refuse(path, mistakes)
    return [task for entry in entries for task in entry.tasks]


def refuse(path: Path, mistakes: Iterable[Mistake]) -> None:
    """InputError with all `mistakes` in the order of their lines, if there are any."""
    ordered = sorted(dict.fromkeys(mistakes))
    if ordered:
        lines = "".join(f"\n  {f'line {m.line}: ' if m.line else ''}{m.text}" for m in ordered)
        raise InputError(f"{path} has {counted(len(ordered), 'mistake')}:{lines}")


def read_tasks(path: Path) -> tuple[list[Entry], list[Mistake]]:
    """(the entries that name a model, all mistakes but those). InputError for a file that is no TOML."""
    text = read_text(path, _MOST_BYTES, "TOML")
    try:
        document = parse_toml(text)
    except MalformedError as exc:
        raise InputError(f"{path} is not TOML: {exc}") from exc
    lines = _Lines(text)
    mistakes = []
    for key in document.keys() - {"tasks"}:
        hint = nearest(key, ("tasks",)) or ": there are only [[tasks]]"
        mistakes.append(Mistake(lines.of_key(key), f"unknown field {plain(key, 40)}{hint}"))
    tables = document.get("tasks", [])
    if not isinstance(tables, list) or not all(isinstance(t, dict) for t in tables):
        return [], [*mistakes, Mistake(lines.of_key("tasks"), "tasks are written as tables: [[tasks]], then model = …")]
    if not tables:
        return [], [*mistakes, Mistake(0, "there is no [[tasks]] in it")]
    entries: list[Entry] = []
    met: dict[str, int] = {}
    for k, table in enumerate(tables):
        reader = _Reader(table, k, lines, path.parent)
        entry = reader.entry(met)
        mistakes += reader.mistakes
        if entry.source[0]:
            entries.append(entry)
    if sum(len(e.tasks) for e in entries) > MOST_TASKS:
        mistakes.append(Mistake(0, f"there are more than {MOST_TASKS} tasks"))
    return entries, mistakes


class _Reader:
    def __init__(self, table: Mapping[str, Any], place: int, lines: _Lines, folder: Path) -> None:
        self._table, self._place, self._lines, self._folder = table, place, lines, folder
        self.mistakes: list[Mistake] = []

    def entry(self, met: dict[str, int]) -> Entry:
        """Its tasks, numbered on from those `met` before. What is wrong is in `mistakes`."""
        for key in self._table.keys() - set(_FIELDS):
            hint = nearest(key, _FIELDS) or f": there are {', '.join(_FIELDS)}"
            self._wrong(key, f"unknown field {plain(key, 40)}{hint}")
        if "model" not in self._table:
            self._wrong("", 'a task needs a model: model = "…"')
        model, weights, file = (self._read_text(key) for key in ("model", "weights", "input"))
        model, named_too = with_weights(model)
        weights = weights or named_too or ""
        count = self._whole("count", 1, 1, MOST_TASKS)
        priority = self._whole("priority", 0, -MOST_PRIORITY, MOST_PRIORITY)
        arrival, deadline = self._seconds("arrival"), self._seconds("deadline", least=1e-6)
        file = self._path("input", file)
        if weights and weights.partition(":")[0] != "random":
            weights = self._path("weights", weights)
        if not is_named(model) and (weights or Path(model).suffix in _FILES):  # else it is the server's
            model = self._path("model", model)
        tasks = []
        for _ in range(count if not self.mistakes else 0):
            met[model] = met.get(model, 0) + 1
            name = plain(f"{Path(model).stem if Path(model).suffix in _FILES else model}-{met[model]}")
            tasks.append(
                Task(name=name, model=model, weights=weights, input=file, priority=priority, arrival_s=arrival,
                     deadline_s=deadline)
            )  # fmt: skip
        return Entry(self._lines.of(self._place, "model"), (model, weights), tuple(tasks))

    def _path(self, key: str, name: str) -> str:
        """The file `name`, if there is a name: in the folder of the tasks or below."""
        if not name:
            return ""
        try:
            path = named(name, self._folder)
        except ValueError as exc:
            self._wrong(key, f"the file {exc}")
            return ""
        if not path.is_file():
            self._wrong(key, f"there is no file {self._folder / name}")
        return str(path)

    def _read_text(self, key: str) -> str:
        value = self._table.get(key, "")
        if not isinstance(value, str) or (key in self._table and not value.strip()) or len(value) > _MOST_TEXT:
            self._wrong(key, f"{key} must be a text")
            return ""
        return value

    def _whole(self, key: str, default: int, low: int, high: int) -> int:
        value = self._table.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            self._must(key, f"a whole number from {low} to {high}")
            return default
        return value

    def _seconds(self, key: str, least: float = 0.0) -> float:
        if key not in self._table:
            return 0.0
        value = self._table[key]
        parts = _TIME.fullmatch(value.strip()) if isinstance(value, str) else None
        seconds = float(parts[1]) * _UNITS[parts[2]] if parts else -1.0
        if not least <= seconds <= MOST_S:
            above = "above zero and " if least else ""
            self._must(key, f'a time such as "200ms" or "1.5s", {above}at most a day')
        return seconds

    def _must(self, key: str, be: str) -> None:
        self._wrong(key, f"{key} must be {be}, not {plain(str(self._table[key]), 40)}")

    def _wrong(self, key: str, text: str) -> None:
        self.mistakes.append(Mistake(self._lines.of(self._place, key), text))


#: A MODEL that is a file here.
_FILES = (".onnx", ".pt2")
_FIELDS = ("model", "weights", "input", "count", "priority", "arrival", "deadline")


def _shortened(quoted: re.Match[str]) -> str:
    """Nothing but the ends of its lines, of a text that may have several."""
    return "\n" * quoted[0].count("\n") if quoted[1] else quoted[0]


class _Lines:
    """Which line says what: the TOML reader does not tell. In a file of another style, the nearest line above."""

    def __init__(self, text: str) -> None:
        self._tables: list[int] = []
        self._keys: dict[tuple[int, str], int] = {}
        for number, line in enumerate(_QUOTED.sub(_shortened, text).splitlines(), 1):
            if _HEADER.match(line):
                self._tables.append(number)
            elif key := _KEY.match(line):
                self._keys.setdefault((len(self._tables) - 1, key[1]), number)

    def of(self, place: int, key: str) -> int:
        """The line of `key` in the table at `place`; that of the table's header, if the key is nowhere."""
        if place >= len(self._tables):  # tasks = [{…}, {…}]
            return self.of_key("tasks")
        return self._keys.get((place, key), self._tables[place])

    def of_key(self, key: str) -> int:
        """The line of a field outside of all tables; 0 if it is nowhere."""
        return self._keys.get((-1, key), 0)
