"""What ``--link`` may say: a preset, rates and a round trip, or a file."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from splitpoint.errors import UsageError, nearest
from splitpoint.link import Link
from splitpoint.link.files import load_link, load_trace
from splitpoint.link.link_trace import LinkTrace
from splitpoint.link.presets import PRESETS

_NUMBER = r"([-+]?(?:\d+\.?\d*(?:e[-+]?\d+)?|\.\d+|nan|inf(?:inity)?))\s*"
_RATE = re.compile(_NUMBER + r"([kmg])(?:bit|bps|bit/s)")
_TIME = re.compile(_NUMBER + r"(us|µs|ms|s)")
_MBPS = {"k": 1e-3, "m": 1.0, "g": 1e3}
_MS = {"us": 1e-3, "µs": 1e-3, "ms": 1.0, "s": 1e3}
_SHAPE = "UP/DOWN,ROUNDTRIP, such as 10mbit/20mbit,40ms"


def parse_link(text: str) -> Link | LinkTrace:
    """The link that `text` means.

    A preset's name; ``10mbit/20mbit,40ms`` (up/down, round trip; ``10mbit,40ms`` is the same both ways; a third part
    such as ``5ms`` is the jitter); a ``.json`` file (as `splitpoint link -o` writes it); a ``.csv`` trace with the
    header ``time,up,down,rtt``. UsageError for anything else, InputError for a file that is broken or not there.

    >>> print(parse_link("10mbit/20mbit,40ms"))
    10 Mbit/s up, 20 down, round trip 40 ms
    """
    text = text.strip()
    if text.lower() in PRESETS:
        return PRESETS[text.lower()]
    suffix = Path(text).suffix.lower()
    if suffix == ".json":
        return load_link(Path(text))
    if suffix == ".csv":
        return load_trace(Path(text))
    if "," in text or _looks_like_a_rate(text):
        return _parse_numbers(text)
    names = ", ".join(PRESETS)
    hint = nearest(text.lower(), PRESETS) or f"; there are {names}"
    raise UsageError(
        f"no link is called {text or 'nothing'}{hint} (or write {_SHAPE}, or name a .link.json or .csv file)"
    )


def _looks_like_a_rate(text: str) -> bool:
    return any(_RATE.fullmatch(part) for part in (text.lower(), text.lower().partition("/")[0]))


def _parse_numbers(text: str) -> Link:
    rates, *times = (part.strip() for part in text.lower().replace("bit/s", "bit").split(","))
    up, slash, down = rates.partition("/")
    if not times:
        raise UsageError(f"{text} lacks the round trip: write {_SHAPE}")
    if len(times) > 2:
        raise UsageError(f"{text} has too many parts: write {_SHAPE}")
    up_mbps = _rate(up)
    down_mbps = _rate(down) if slash else up_mbps
    rtt_ms, jitter_ms = _time(times[0]), _time(times[1]) if len(times) > 1 else 0.0
    try:
        return Link(up_mbps, down_mbps, rtt_ms, jitter_ms, text)
    except UsageError as exc:
        raise UsageError(f"{text}: {exc}") from exc


def _rate(text: str) -> float:
    return _number(text, _RATE, _MBPS, "is no rate: write a number and kbit, mbit or gbit, such as 10mbit")


def _time(text: str) -> float:
    return _number(text, _TIME, _MS, "is no time: write a number and ms or s, such as 40ms")


def _number(text: str, pattern: re.Pattern[str], units: Mapping[str, float], wrong: str) -> float:
    match = pattern.fullmatch(text.strip())
    if match is None:
        raise UsageError(f"{text.strip() or 'nothing'} {wrong}")
    return float(match[1]) * units[match[2]]
