"""Text of strangers, such as file names, names in models and what a peer wrote, made fit to be shown or kept.

A terminal acts on what is in such text (escape sequences, line ends, changes of the writing direction), and a file name
need not be text at all: its bytes that are not UTF-8 come as lone surrogates, which no encoding takes.
"""

from __future__ import annotations

import re

_SURROGATE = re.compile("[\ud800-\udfff]")
#: All that a terminal acts upon, but for the ends of lines and tabs.
_CONTROL = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\u200e\u200f\u2028-\u202e\u2066-\u2069]|\r(?!\n)"
)


def valid(text: str) -> str:
    r"""`text` as every encoding of Unicode takes it: for JSON, and for names in files.

    >>> valid("caf\udce9.jpg")
    'caf\\xe9.jpg'
    """
    return _SURROGATE.sub(lambda found: _escaped(found[0]), text)


def plain(text: str, most: int = 1000) -> str:
    r"""`text` as one line of at most `most` characters, without any that a terminal would act upon.

    Whatever a stranger wrote goes through here before it is shown: else a terminal or a log could show what was never
    said.

    >>> plain("\x1b]0;title\x07\nserving on 6.6.6.6", 60)
    ']0;title serving on 6.6.6.6'
    """
    shown = (c if c.isprintable() else _escaped(c) if "\udc80" <= c <= "\udcff" else " " for c in text[: 2 * most])
    line = " ".join("".join(shown).split())
    return line if len(line) <= most else line[: most - 1] + "…"


def harmless(text: str) -> str:
    r"""`text`, whose lines stay lines, with all else that a terminal would act upon written out. JSON stays that JSON.

    >>> harmless("a\tb\n\x1b[31mred \x9b")
    'a\tb\n\\x1b[31mred \\u009b'
    """
    return _CONTROL.sub(lambda found: _escaped(found[0]), text)


def _escaped(character: str) -> str:
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # a byte that was not UTF-8
        return f"\\x{code - 0xDC00:02x}"
    return f"\\x{code:02x}" if code < 0x20 else f"\\u{code:04x}"
