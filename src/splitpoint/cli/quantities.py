"""Quantities on a command line → numbers."""

from __future__ import annotations

import re

from splitpoint.errors import UsageError
from splitpoint.profile.values import Watts


def parse_share(text: str) -> float:
    """``1%`` or ``0.01`` → 0.01; UsageError for anything else."""
    number, _, rest = text.strip().partition("%")
    try:
        share = float(number) / (100 if "%" in text else 1)
    except ValueError:
        share = -1.0
    if rest.strip() or not 0 <= share < 1:
        raise UsageError(f"--max-drop is a share of the answers, such as 1% or 0.01, not {text}")
    return share


_SIZE = re.compile(r"([0-9]*\.?[0-9]+)\s*(|[kMGT]i?)B?", re.IGNORECASE)


def parse_size(text: str) -> float:
    """``100MB``, ``1.5 GiB``, ``4096`` → bytes; UsageError for anything else."""
    found = _SIZE.fullmatch(text.strip())
    if found is None or float(found[1]) <= 0:
        raise UsageError(f"--max-edge-memory is a size above zero, such as 100MB, not {text}")
    unit = found[2].lower()
    base = 1024 if unit.endswith("i") else 1000
    return float(found[1]) * float(base ** " kmgt".index(unit[:1] or " "))


_TIME = re.compile(r"([0-9]*\.?[0-9]+)\s*(ms|s|m|min|)", re.IGNORECASE)


def parse_ms(text: str, option: str) -> float:
    """``200ms``, ``1.5s``, ``2min`` → milliseconds; UsageError for anything else. A bare number is milliseconds."""
    found = _TIME.fullmatch(text.strip())
    if found is None or float(found[1]) <= 0:
        raise UsageError(f"{option} is a time above zero, such as 200ms or 1.5s, not {text}")
    return float(found[1]) * {"s": 1e3, "m": 6e4, "min": 6e4}.get(found[2].lower(), 1.0)


def parse_budget(text: str) -> float:
    """``"60s"``, ``"60"``, ``"500ms"``, ``"5m"`` in seconds; UsageError for anything else, zero, and over a day."""
    found = _TIME.fullmatch(text.strip())
    unit = {"ms": 1e-3, "m": 60.0, "min": 60.0}.get(found[2].lower(), 1.0) if found else 0.0
    seconds = float(found[1]) * unit if found else 0.0
    if not 0 < seconds <= 86400:
        raise UsageError(f"--budget is a time like 60s or 5m, above 0 and at most a day, not {text}")
    return seconds


def parse_watts(text: str) -> Watts:
    """``7,3,2`` → Watts; UsageError for anything else."""
    try:
        compute, tx, idle = (float(n) for n in text.split(","))
    except ValueError:
        compute = tx = idle = -1.0
    if not all(0 <= n < 1e6 for n in (compute, tx, idle)):
        raise UsageError(f"--edge-watts is COMPUTE,TX,IDLE in watts, such as 7,3,2, not {text}")
    return Watts(compute, tx, idle, "given by --edge-watts")
