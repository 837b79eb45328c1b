"""Numbers as bars of a terminal: what took how long, beside what was predicted."""

from __future__ import annotations

from collections.abc import Sequence

from splitpoint.planning.constraints import percent
from splitpoint.planning.plans import Option, kept
from splitpoint.units import ms, size

#: The last character of a bar, by eighths.
_PARTS = " ▏▎▍▌▋▊▉"
#: Characters of the longest bar where there is room; with less than the second number a column goes for it.
_WIDE, _NARROW, _LEAST = 24, 10, 4
_TITLES = ("predicted", "measured", "", "sent", "kept")
_GAP = 2


def bar(value: float, most: float, width: int) -> str:
    """`value` as a bar, of which `most` has `width` characters.

    >>> bar(1.0, 2.0, 4), bar(0.45, 2.0, 4), bar(0.0, 0.0, 4)
    ('██', '▉', '')
    """
    eighths = round(8 * width * value / most) if most > 0 else 0
    full, part = divmod(eighths, 8)
    return "█" * full + _PARTS[part].strip()


def bar_lines(rows: Sequence[tuple[Option, float, int]], best: Option, width: int) -> list[str]:
    """A title and a line for each of (option, measured ms, measured bytes up): predicted and measured milliseconds, a
    bar for the measured ones, bytes, and, where there is room, how many answers stay. The planned one has an arrow.
    Lines fit a `width` of 80."""
    names = [option.label.replace("split after ", "split: ", 1) for option, _, _ in rows]
    cells = [_TITLES] + [
        (f"{ms(option.total.ms)} ms", f"{ms(took)} ms", "", size(up) if up else "-", _kept(option))
        for option, took, up in rows
    ]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    named = max(map(len, names))

    def room() -> int:
        return width - 3 - named - sum(w + _GAP for w in widths)

    if room() < _NARROW:
        widths.pop()
    drawn = min(_WIDE, max(_LEAST, room()))
    longest = max(took for _, took, _ in rows)
    bars = ["", *(bar(took, longest, drawn) for _, took, _ in rows)]
    marks = [" ", *("→" if option == best else " " for option, _, _ in rows)]
    widths[2] = drawn

    def line(mark: str, name: str, texts: Sequence[str], shape: str) -> str:
        fitted = [text.rjust(w) for text, w in zip(texts, widths, strict=False)]
        fitted[2] = shape.ljust(drawn)
        return (" " * _GAP).join([f" {mark} {name:<{named}}", *fitted])

    return [line(*each) for each in zip(marks, ["", *names], cells, bars, strict=True)]


def _kept(option: Option) -> str:
    share = kept(option)
    return "?" if share is None else percent(share)
