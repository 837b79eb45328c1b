"""Quantities on a command line → numbers: times, sizes, rates, shares, watts. Each has a type for `click.option`."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import click
from click.types import StringParamType

from splitpoint.errors import UsageError
from splitpoint.profile.profiles import Watts


def parse_share(text: str, option: str = "--max-drop") -> float:
    """``1%`` or ``0.01`` → 0.01; UsageError for anything else."""
    number, _, rest = text.strip().partition("%")
    try:
        share = float(number) / (100 if "%" in text else 1)
    except ValueError:
        share = -1.0
    if rest.strip() or not 0 <= share < 1:
        raise UsageError(f"{option} is a share of the answers, such as 1% or 0.01, not {_short(text)}")
    return share


_PETABYTE, _DAY_S = 1e15, 86400.0


def _short(text: str) -> str:
    """What was typed, as far as a sentence can hold it."""
    return text if len(text) <= 40 else text[:39] + "…"


_SIZE = re.compile(r"([0-9]*\.?[0-9]+)\s*(|[kMGT]i?)B?", re.IGNORECASE)


def parse_size(text: str, option: str = "--max-edge-memory") -> float:
    """``100MB``, ``1.5 GiB``, ``4096`` → bytes; UsageError for anything else, zero, and over a petabyte."""
    match = _SIZE.fullmatch(text.strip())
    unit = match[2].lower() if match else ""
    base = 1024 if unit.endswith("i") else 1000
    nbytes = float(match[1]) * float(base ** " kmgt".index(unit[:1] or " ")) if match else 0.0
    if not 0 < nbytes <= _PETABYTE:
        raise UsageError(f"{option} is a size such as 100MB, above zero and at most a petabyte, not {_short(text)}")
    return nbytes


_TIME = re.compile(r"([0-9]*\.?[0-9]+)\s*(ms|s|m|min|)", re.IGNORECASE)


def _ms(text: str, bare_ms: float) -> float:
    """A time in milliseconds, of a bare number `bare_ms` each; 0 for anything else."""
    match = _TIME.fullmatch(text.strip())
    unit = {"ms": 1.0, "s": 1e3, "m": 6e4, "min": 6e4}.get(match[2].lower(), bare_ms) if match else 0.0
    return float(match[1]) * unit if match else 0.0


def parse_ms(text: str, option: str) -> float:
    """``200ms``, ``1.5s``, ``2min`` → milliseconds; UsageError for anything else, zero, and over a day.

    A bare number is milliseconds.
    """
    time_ms = _ms(text, 1.0)
    if not 0 < time_ms <= _DAY_S * 1e3:
        raise UsageError(f"{option} is a time such as 200ms or 1.5s, above zero and at most a day, not {_short(text)}")
    return time_ms


def parse_budget(text: str, option: str = "--budget") -> float:
    """``"60s"``, ``"60"``, ``"500ms"``, ``"5m"`` in seconds; UsageError for anything else, zero, and over a day."""
    seconds = _ms(text, 1e3) / 1e3
    if not 0 < seconds <= _DAY_S:
        raise UsageError(f"{option} is a time like 60s or 5m, above 0 and at most a day, not {_short(text)}")
    return seconds


_RATE = re.compile(r"([0-9]*\.?[0-9]+)\s*(/\s*s|fps|hz|)", re.IGNORECASE)
_MOST_RATE = 1e6


def parse_rate(text: str, option: str = "--rate") -> float:
    """``30``, ``29.97``, ``30/s`` → frames a second; UsageError for anything else, zero, and over a million."""
    match = _RATE.fullmatch(text.strip())
    per_second = float(match[1]) if match else 0.0
    if not 0 < per_second <= _MOST_RATE:
        raise UsageError(
            f"{option} is frames a second, such as 30 or 0.5, above zero and at most a million, not {_short(text)}"
        )
    return per_second


def parse_watts(text: str, option: str = "--edge-watts") -> Watts:
    """``7,3,2`` → Watts; UsageError for anything else."""
    try:
        compute, tx, idle = (float(n) for n in text.split(","))
    except ValueError:
        compute = tx = idle = -1.0
    if not all(0 <= n < 1e6 for n in (compute, tx, idle)):
        raise UsageError(f"{option} is COMPUTE,TX,IDLE in watts, such as 7,3,2, not {_short(text)}")
    return Watts(compute, tx, idle, f"given by {option}")


class Quantity(StringParamType):
    """What `parse` makes of a text and the option's name. With `zero`, 0 is one, too."""

    name = "quantity"

    def __init__(self, parse: Callable[[str, str], Any], *, zero: bool = False) -> None:
        self._parse, self._zero = parse, zero

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):
            return value
        if self._zero and value.strip() == "0":
            return 0.0
        return self._parse(value, max(param.opts, key=len) if param is not None else "it")


#: A share of 1; bytes; frames a second; milliseconds (a bare number is that); seconds (a bare number is that); watts.
SHARE, SIZE, RATE = Quantity(parse_share), Quantity(parse_size), Quantity(parse_rate)
MS, MS_OR_0 = Quantity(parse_ms), Quantity(parse_ms, zero=True)
SECONDS, SECONDS_OR_0 = Quantity(parse_budget), Quantity(parse_budget, zero=True)
WATTS = Quantity(parse_watts)


def budget_option(default: str, text: str, *, metavar: str = "TIME", zero: bool = False) -> Callable[[Any], Any]:
    """--budget: the parameter `budget_s`, which may be 0 if that makes sense (`zero`)."""
    return click.option(
        "--budget",
        "budget_s",
        type=SECONDS_OR_0 if zero else SECONDS,
        default=default,
        show_default=True,
        metavar=metavar,
        help=text,
    )
