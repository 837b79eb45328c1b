"""Numbers as people read them."""

from __future__ import annotations

from collections.abc import Sequence


def size(nbytes: float) -> str:
    """Bytes in decimal units, as links and file sizes are given.

    >>> size(150528), size(12), size(4_100_000)
    ('150.5 kB', '12 B', '4.1 MB')
    """
    return _prefixed(nbytes, (" B", " kB", " MB", " GB"))


def count(number: float) -> str:
    """A count with a decimal prefix: 3.5 M."""
    return _prefixed(number, ("", " k", " M", " G", " T"))


def _prefixed(number: float, units: Sequence[str]) -> str:
    for unit in units[:-1]:
        if abs(number) < 1000:
            return f"{number:.0f}{unit}" if unit == units[0] else f"{number:.1f}{unit}"
        number /= 1000
    return f"{number:.1f}{units[-1]}"


def ms(milliseconds: float) -> str:
    """Milliseconds with three significant digits: 0.123, 12.3, 123."""
    if abs(milliseconds) >= 100:
        return f"{milliseconds:.0f}"
    return f"{milliseconds:.1f}" if abs(milliseconds) >= 10 else f"{milliseconds:.2f}"


def fine_ms(milliseconds: float) -> str:
    """Milliseconds with three digits, of tiny layers and kernels too.

    >>> fine_ms(0.0042), fine_ms(12.34)
    ('0.004', '12.3')
    """
    return ms(milliseconds) if milliseconds >= 0.995 else f"{milliseconds:.3f}"


def counted(number: int, thing: str) -> str:
    """``1 weight``, ``2 weights``."""
    return f"{number} {thing}{'s' * (number != 1)}"


def mbps(rate: float) -> str:
    """Mbit/s with four significant digits, never with an exponent: 0.13, 5.85, 12820."""
    return f"{rate:.0f}" if rate >= 1000 else f"{rate:.4g}"


def rate(per_second: float) -> str:
    """How often a second, with three significant digits, never with an exponent.

    >>> rate(30), rate(7.125), rate(1234.5)
    ('30/s', '7.12/s', '1234/s')
    """
    return f"{per_second:.0f}/s" if per_second >= 100 else f"{per_second:.3g}/s"
