"""JSON and TOML that others wrote → values. Whatever is wrong with the text is one kind of error."""

from __future__ import annotations

import re
from typing import Any, TypeVar, overload

import msgspec

T = TypeVar("T")

#: Lists and tables within each other. Nothing that we read has more than ten.
MOST_DEPTH = 64
#: The line of a table's name in TOML, whose reader walks all of its parts again for each key in that table.
_HEADER = re.compile(r"^[ \t]*\[.*", re.MULTILINE)
_MOST_SAID = 300
#: How msgspec refuses a text by a pattern. The only ones we have are for what is shown (`documents.Label`).
_PATTERN = re.compile(r"`str` matching regex '.*'(?= - at |$)", re.DOTALL)


class MalformedError(ValueError):
    """The text is not what it should be; says where."""


@overload
def parse_json(text: str | bytes) -> Any: ...
@overload
def parse_json(text: str | bytes, type: type[T]) -> T: ...
def parse_json(text: str | bytes, type: Any = Any) -> Any:
    """The value in `text`, of that type. MalformedError if it is no JSON, another value, or nested too deeply.

    >>> parse_json('{"a": [1]}', dict[str, list[int]])
    {'a': [1]}
    """
    try:
        value = msgspec.json.decode(text, type=type)
    except RecursionError:
        raise MalformedError("it is nested too deeply") from None
    # A type's own checks raise nearly anything on values that make no sense.
    except (msgspec.MsgspecError, ValueError, TypeError, OverflowError) as exc:
        raise MalformedError(_short(exc)) from exc
    if type is Any:
        _check_depth(value)
    return value


def parse_toml(text: str) -> dict[str, Any]:
    """The table in `text`. MalformedError if it is no TOML, or nested too deeply."""
    if any(line[0].count(".") > 4 * MOST_DEPTH for line in _HEADER.finditer(text)):
        raise MalformedError("it is nested too deeply")
    try:
        table: dict[str, Any] = msgspec.toml.decode(text)
    except RecursionError:
        raise MalformedError("it is nested too deeply") from None
    except (msgspec.MsgspecError, ValueError) as exc:
        raise MalformedError(_short(exc)) from exc
    _check_depth(table)
    return table


def _check_depth(value: object) -> None:
    """MalformedError for what a recursive reader, `repr` among them, would fail at."""
    level: list[Any] = [[value]]
    for _ in range(MOST_DEPTH + 1):
        inside = (outer.values() if isinstance(outer, dict) else outer for outer in level)
        level = [inner for values in inside for inner in values if isinstance(inner, dict | list)]
        if not level:
            return
    raise MalformedError("it is nested too deeply")


def _short(exc: Exception) -> str:
    text = _PATTERN.sub("text without hidden or control characters", str(exc))
    return text if len(text) <= _MOST_SAID else text[: _MOST_SAID - 1] + "…"
