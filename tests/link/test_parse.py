"""What --link may say."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from splitpoint.errors import InputError, UsageError
from splitpoint.link import Link
from splitpoint.link.parse import parse_link


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("4g", (5.85, 20, 40, 0)),
        (" WiFi ", (18.88, 18.88, 10, 0)),
        ("10mbit/20mbit,40ms", (10, 20, 40, 0)),
        ("10mbit,40ms", (10, 10, 40, 0)),
        ("130kbit/0.5Mbit, 0.1s, 5ms", (0.13, 0.5, 100, 5)),
        ("1gbit/2.5Gbit/s,300us", (1000, 2500, 0.3, 0)),
        ("1e2mbps,.5ms", (100, 100, 0.5, 0)),
    ],
)
def test_text_is_parsed(text: str, numbers: tuple[float, ...]) -> None:
    link = parse_link(text)
    assert isinstance(link, Link)
    assert (link.up_mbps, link.down_mbps, link.rtt_ms, link.jitter_ms) == pytest.approx(numbers)
    assert link.name.lower() == text.strip().lower()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("4gg", "did you mean 4g?"),
        ("wify", "did you mean wifi"),
        ("", "no link is called nothing"),
        ("moon", "there are cat1, 3g, 4g, wifi, wifi5, lan"),
        ("10mbit", "lacks the round trip"),
        ("10mbit/20mbit", "lacks the round trip"),
        ("10/20mbit,40ms", "10 is no rate"),
        ("10MB,40ms", "is no rate"),
        ("10mbit/,40ms", "nothing is no rate"),
        ("10mbit,40", "40 is no time"),
        ("10mbit,", "nothing is no time"),
        ("10mbit,1ms,2ms,3ms", "too many parts"),
        ("0mbit,40ms", "up_mbps must be"),
        ("10mbit/-1mbit,40ms", "down_mbps must be"),
        ("nanmbit,40ms", "up_mbps must be"),
        ("infmbit,40ms", "up_mbps must be"),
        ("1e300gbit,40ms", "up_mbps must be"),
        ("10mbit,-1ms", "rtt_ms must be"),
        ("10mbit,nanms", "rtt_ms must be"),
        ("10mbit,1ms,infs", "jitter_ms must be"),
    ],
)
def test_wrong_text_is_one_clear_sentence(text: str, words: str) -> None:
    with pytest.raises(UsageError) as raised:
        parse_link(text)
    assert words in str(raised.value)
    assert "\n" not in str(raised.value)


@given(st.text(max_size=30))
def test_any_text_is_a_link_or_a_clear_error(text: str) -> None:
    with suppress(UsageError, InputError):
        assert isinstance(parse_link(text), Link)
