"""Numbers as bars of a terminal: what took how long, beside what was predicted."""

from __future__ import annotations

from collections.abc import Sequence

from splitpoint.planning.constraints import percent
from splitpoint.planning.plans import Option, kept
from splitpoint.units import ms, size

#: The last character of a bar, by eighths.
_PARTS = " ▏▎▍▌▋▊▉"
#: Characters of the longest bar where there is room, and where there is none.
_WIDE, _LEAST = 24, 4
_TITLES = ("predicted", "measured", "", "sent", "kept")


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
    bar for the measured ones, bytes, and how many answers stay. The planned one has an arrow. Lines fit `width` if that
    is 80 or more."""
    names = [option.label.replace("split after ", "split: ", 1) for option, _, _ in rows]
    numbers = [
        (f"{ms(option.total.ms)} ms", f"{ms(took)} ms", "", size(up) if up else "-", _kept(option))
        for option, took, up in rows
    ]
    widths = [max(map(len, column)) for column in zip(_TITLES, *numbers, strict=True)]
    named = max(map(len, names))
    room = width - 3 - named - sum(w + 2 for w in widths) - 2
    widths[2] = min(_WIDE, max(_LEAST, room))
    longest = max(took for _, took, _ in rows)

    def line(mark: str, name: str, cells: Sequence[str], drawn: str) -> str:
        texts = [f"{c:>{w}}" if i != 2 else f"{drawn:<{w}}" for i, (c, w) in enumerate(zip(cells, widths, strict=True))]
        return f" {mark} {name:<{named}}  " + "  ".join(texts)

    lines = [line(" ", "", _TITLES, "")]
    for name, (option, took, _), cells in zip(names, rows, numbers, strict=True):
        lines.append(line("→" if option == best else " ", name, cells, bar(took, longest, widths[2])))
    return lines


def _kept(option: Option) -> str:
    share = kept(option)
    return "?" if share is None else percent(share)
