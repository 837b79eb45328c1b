"""Text of strangers, such as file names, names in models and what a peer wrote, made fit to be shown or kept.

A terminal acts on what is in such text (escape sequences, line ends, changes of the writing direction), and a file name
need not be text at all: its bytes that are not UTF-8 come as lone surrogates, which no encoding takes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

_SURROGATE = re.compile("[\ud800-\udfff]")
#: Control characters, changes of the writing direction, ends of lines and paragraphs that only Unicode knows, tags:
#: what acts on a terminal, or makes a text read as something else.
_ACTS = (
    "\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u206f\ufeff\ufff9-\ufffb\ud800-\udfff"
    "\U000e0000-\U000e0fff"
)
#: What is drawn as nothing: names that differ in it look the same. Joiners and variation selectors are among them.
_BLANK = (
    "\xad\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200d\u2060-\u2065\u2800\u3164\ufe00-\ufe0f\uffa0"
    "\U0001bca0-\U0001bca3\U0001d173-\U0001d17a"
)
#: What a label that comes in a file may not have; a tab may be there, and what joins letters and emoji.
CONTROL = re.compile(f"[\n{_ACTS}]")
#: What a name that comes in a file may not have.
HIDDEN = re.compile(f"[\n{_ACTS}{_BLANK}]")
_WRITTEN_OUT = re.compile(rf"(?!\r\n)[{_ACTS}{_BLANK}]")


#: Of a name among others, as many characters are shown.
_MOST_NAME = 200


def valid(text: str) -> str:
    r"""`text` as every encoding of Unicode takes it: for JSON, and for names in files.

    >>> valid("caf\udce9.jpg")
    'caf\\xe9.jpg'
    """
    return _SURROGATE.sub(lambda found: _escaped(found[0]), text)


def plain(text: str, most: int = 1000) -> str:
    r"""`text` as one line of at most `most` characters, without any that a terminal would act upon or not show.

    Whatever a stranger wrote goes through here before it is shown: else a terminal or a log could show what was never
    said.

    >>> plain("\x1b]0;title\x07\nserving on 6.6.6.6", 60)
    ']0;title serving on 6.6.6.6'
    """
    shown = (
        _escaped(c) if "\udc80" <= c <= "\udcff" else c if c.isprintable() and not HIDDEN.match(c) else " "
        for c in text[: 2 * most]
    )
    line = " ".join("".join(shown).split())
    return line if len(line) <= most else line[: most - 1] + "…"


def listed(names: Iterable[object], most: int = 20) -> str:
    """`names` as a sentence has them: how many there are, and how long, may be a stranger's choice.

    >>> listed("abcd", most=2), listed([])
    ('a, b … and 2 more', 'none')
    """
    all_of_them = [name if len(name) <= _MOST_NAME else f"{name[: _MOST_NAME - 1]}…" for name in map(str, names)]
    more = len(all_of_them) - most
    return (", ".join(all_of_them[:most]) or "none") + (f" … and {more:,} more" if more > 0 else "")


def end_of(text: str, width: int) -> str:
    """`text` in at most `width` characters, the front left out: the end of a layer's path tells more than its front.

    >>> end_of("features.3.conv", 8)
    '….3.conv'
    """
    return text if len(text) <= width else "…" + text[len(text) - width + 1 :]


def harmless(text: str) -> str:
    r"""`text`, whose lines stay lines, with all else that a terminal would act upon or not show written out.

    JSON stays that JSON.

    >>> harmless("a\tb\n\x1b[31mred \x9b")
    'a\tb\n\\x1b[31mred \\u009b'
    """
    return _WRITTEN_OUT.sub(lambda found: _escaped(found[0]), text)


def _escaped(character: str) -> str:
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # a byte that was not UTF-8
        return f"\\x{code - 0xDC00:02x}"
    if code < 0x20:
        return f"\\x{code:02x}"
    units = character.encode("utf-16-be", "surrogatepass").hex()  # as JSON writes it: two units for one above U+FFFF
    return "".join(f"\\u{units[k : k + 4]}" for k in range(0, len(units), 4))
