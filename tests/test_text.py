"""Text of strangers: one line, nothing that a terminal acts upon, and JSON that stays that JSON."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from splitpoint.text import CONTROL, HIDDEN, harmless, plain, valid

ANY = st.text(st.characters(), max_size=60) | st.text(
    st.sampled_from("\x00\x1b\x9b\n\r\u202e\u2028\u200b\ud800\udce9a\u00e9\U000e0041 "), max_size=30
)


@given(ANY)
def test_every_encoding_takes_what_is_valid(text: str) -> None:
    assert valid(text).encode("utf-16").decode("utf-16") == valid(text)
    if not any("\ud800" <= c <= "\udfff" for c in text):
        assert valid(text) == text


@given(ANY, st.integers(1, 40))
def test_plain_text_is_one_bounded_line(text: str, most: int) -> None:
    line = plain(text, most)
    assert len(line) <= most
    assert len(line.splitlines()) <= 1
    assert line.isprintable()
    assert not HIDDEN.search(line)
    assert plain(line, most) == line


@given(ANY)
def test_harmless_text_keeps_its_lines_and_its_meaning_as_json(text: str) -> None:
    shown = harmless(text)
    assert not CONTROL.search(shown.replace("\n", "").replace("\r", ""))
    assert shown.count("\n") == text.count("\n")
    document = json.dumps({"text": valid(text)}, ensure_ascii=False)
    assert json.loads(harmless(document)) == {"text": valid(text)}


def test_bytes_that_are_no_text_are_shown_as_bytes() -> None:
    assert valid("caf\udce9") == plain("caf\udce9") == harmless("caf\udce9") == "caf\\xe9"
