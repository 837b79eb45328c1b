"""Quantities on a command line → numbers: times, sizes, rates, shares, watts. Each has a type for `click.option`.

One rule: a time and a size have a unit (``200ms``, ``5m``, ``100MB``), as a bare number could be seconds or
milliseconds, bytes or megabytes. 0 needs none, nor does a number whose option says what it counts (--max-bytes,
--rate, --days).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import click
from click.types import StringParamType

from splitpoint.cli.options import PLANNING, together
from splitpoint.errors import UsageError
from splitpoint.profile.profiles import Watts

_NUMBER = re.compile(r"([0-9]*\.?[0-9]+)\s*(/?\s*[a-z]*)")
_BARE = re.compile(r"[0-9]{0,20}\.?[0-9]{1,20}")
#: What a bare number is answered with.
_TIMES, _MEMORY = ("ms", "s", "m"), ("kB", "MB", "GB")


class Quantity(StringParamType):
    """A number above zero and at most `most`, times its unit's factor. With `zero`, 0 is one, too.

    >>> SIZE.parse("1.5 kB", "--max-work"), MS.parse("2s", "--deadline"), RATE.parse("30/s", "--rate")
    (1500.0, 2000.0, 30.0)
    """

    name = "quantity"

    def __init__(self, what: str, units: Mapping[str, float], most: float, *, zero: bool = False) -> None:
        self._what, self._units, self._most, self._zero = what, units, most, zero

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):
            return value
        option = max(param.opts, key=len) if param is not None else "it"
        number = self.parse(value, option)
        if number is None:
            bare = value.strip()
            if self._units and "" not in self._units and _BARE.fullmatch(bare) and float(bare):
                could = [bare + unit for unit in (_TIMES if "ms" in self._units else _MEMORY)]
                raise UsageError(f"{option} {bare} needs its unit: {', '.join(could[:-1])} or {could[-1]}")
            short = value if len(value) <= 40 else value[:39] + "…"
            raise UsageError(f"{option} is {self._what}, not {short}")
        return number

    def parse(self, text: str, option: str) -> Any:
        """The number, or None if `text` is none."""
        match = _NUMBER.fullmatch(text.strip().lower())
        number = float(match[1]) * self._units.get("".join(match[2].split()), 0.0) if match else 0.0
        return number if 0 < number <= self._most or (self._zero and text.strip() == "0") else None


class _Share(Quantity):
    """``1%`` or ``0.01`` → 0.01."""

    def parse(self, text: str, option: str) -> float | None:
        number, _, rest = text.strip().partition("%")
        try:
            share = float(number) / (100 if "%" in text else 1)
        except ValueError:
            return None
        return share if not rest.strip() and 0 <= share < self._most else None


class _Watts(Quantity):
    """``7,3,2`` → Watts."""

    def parse(self, text: str, option: str) -> Watts | None:
        try:
            compute, tx, idle = (float(n) for n in text.split(","))
        except ValueError:
            return None
        right = all(0 <= n < self._most for n in (compute, tx, idle))
        return Watts(compute, tx, idle, f"given by {option}") if right else None


_BYTES = {
    f"{prefix}{i}{b}": float((1024 if i else 1000) ** power)
    for power, prefix in enumerate(("", "k", "m", "g", "t"))
    for i in ("", "i")[: 1 + power]
    for b in ("", "b")
}
_SIZES = {unit: factor for unit, factor in _BYTES.items() if unit}
_SECONDS = {"ms": 1e-3, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}
_MILLISECONDS = {unit: factor * 1e3 for unit, factor in _SECONDS.items()}
_DAY_S = 86400.0

SHARE = _Share("a share of the answers, such as 1% or 0.01", {}, 1.0)
AGREEMENT = _Share("a share of the answers, such as 98% or 0.98, and at most 100%", {}, 1.0 + 1e-12)
#: Bytes.
SIZE = Quantity("a size such as 100MB, above zero and at most a petabyte", _SIZES, 1e15)
#: The same where the option is called so: a bare number is bytes.
BYTES = Quantity("a size such as 4kB, above zero and at most a petabyte", _BYTES, 1e15)
#: Frames a second.
RATE = Quantity(
    "frames a second, such as 30 or 0.5, above zero and at most a million",
    dict.fromkeys(("", "/s", "fps", "hz"), 1.0),
    1e6,
)
#: Milliseconds.
MS, MS_OR_0 = (
    Quantity("a time such as 200ms or 1.5s, above zero and at most a day", _MILLISECONDS, _DAY_S * 1e3, zero=zero)
    for zero in (False, True)
)
#: Seconds.
SECONDS, SECONDS_OR_0 = (
    Quantity("a time like 60s or 5m, above 0 and at most a day", _SECONDS, _DAY_S, zero=zero) for zero in (False, True)
)
WATTS = _Watts("COMPUTE,TX,IDLE in watts, such as 7,3,2", {}, 1e6)


HOUR_OR_0 = Quantity("a time like 30s or 5m, at most an hour, or 0", _SECONDS, 3600.0, zero=True)


def budget_option(default: str, text: str, *, zero: bool = False) -> Callable[[Any], Any]:
    """--budget: the parameter `budget_s`, which may be 0 if that makes sense (`zero`)."""
    kind = SECONDS_OR_0 if zero else SECONDS
    option = click.option(
        "--budget", "budget_s", type=kind, default=default, show_default=True, metavar="TIME", help=text
    )
    return together(option, section=PLANNING)
