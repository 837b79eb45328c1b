"""Links and traces as files."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from splitpoint.errors import InputError, StorageError
from splitpoint.link import Link
from splitpoint.link.files import load_link, load_trace, save_link
from splitpoint.link.link_trace import LinkTrace
from splitpoint.link.parse import parse_link
from splitpoint.link.presets import PRESETS


def test_a_trace_is_read(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("\ufefftime, up, down, rtt, jitter\r\n1000.5,10,20,40,5\r\n1002.5, .5,2e1,0,\r\n")
    trace = parse_link(str(path))
    assert isinstance(trace, LinkTrace)
    assert trace.times == (0, 2)
    assert trace.links == (Link(10, 20, 40, 5), Link(0.5, 20, 0))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "its first line must be time,up,down,rtt"),
        ("time,up,down\n1,2,3\n", "its first line must be time,up,down,rtt"),
        ("time,up,down,rtt\n", "without rows"),
        ("time,up,down,rtt\n0,1,2\n", "line 2: rtt is missing"),
        ("time,up,down,rtt\n0,1,x,3\n", "line 2: down is x, not a number"),
        ("time,up,down,rtt\n0,1,1,1\n1,0,1,1\n", "line 3: a link's up_mbps must be"),
        ("time,up,down,rtt\n0,1,nan,1\n", "line 2: a link's down_mbps must be"),
        ("time,up,down,rtt\n0,1,1,-1\n", "line 2: a link's rtt_ms must be"),
        ("time,up,down,rtt\nnan,1,1,1\n", "line 2: time must be a finite"),
        ("time,up,down,rtt\n0,1,1,1\n0,1,1,1\n", "line 3: time 0 does not come after 0"),
        ('time,up,down,rtt\n0,"1,1,1\n', "is not CSV"),
        (b"\xff\xfe\x00", "it is not UTF-8 text"),
    ],
)
def test_a_broken_trace_names_the_line(tmp_path: Path, text: str | bytes, words: str) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InputError) as raised:
        load_trace(path)
    assert words in str(raised.value)
    assert str(path) in str(raised.value)


def test_a_link_comes_back_from_its_file(tmp_path: Path) -> None:
    path = tmp_path / "home.link.json"
    link = Link(5.851, 19.9, 40.2, 1.5, "server:3277")
    save_link(path, link)
    assert load_link(path) == link
    assert parse_link(str(path)) == link
    assert '"up_mbps": 5.851' in path.read_text()


def test_a_link_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="cannot be written"):
        save_link(tmp_path / "no" / "x.link.json", PRESETS["4g"])
    assert list(tmp_path.iterdir()) == []


def test_a_file_from_before_software_was_measured_is_read(tmp_path: Path) -> None:
    path = tmp_path / "x.link.json"
    path.write_bytes(msgspec.json.encode(GOOD))
    assert load_link(path) == Link(1, 1, 1)
    save_link(path, Link(1, 2, 3, 4, "here", 0.5))
    assert load_link(path) == Link(1, 2, 3, 4, "here", 0.5)


GOOD = {"format": 1, "up_mbps": 1.0, "down_mbps": 1.0, "rtt_ms": 1.0}


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "is not a link, or it is damaged: "),
        (b"\xff", "is not a link, or it is damaged: "),
        (b'{"format": 1, "up_mbps": NaN}', "is not a link, or it is damaged: "),
        (b"[" * 100_000, "is not a link, or it is damaged: "),
        (b"[1]", "is not a link, or it is damaged: Expected `object`"),
        ({"format": 1, "fingerprint": "ab"}, "is not a link: make one with splitpoint link HOST -o FILE"),
        (
            {**GOOD, "format": 2},
            "of format 2, and this version reads format 1: make it anew with splitpoint link HOST -o",
        ),
        ({k: v for k, v in GOOD.items() if k != "format"}, "is a link of format none"),
        ({k: v for k, v in GOOD.items() if k != "rtt_ms"}, "rtt_ms"),
        ({**GOOD, "up_mbps": "fast"}, "$.up_mbps"),
        ({**GOOD, "down_mbps": 0}, "down_mbps must be"),
        ({**GOOD, "up_mbps": -1}, "up_mbps must be"),
        ({**GOOD, "rtt_ms": -1}, "rtt_ms must be"),
    ],
)
def test_a_broken_file_names_itself_and_the_field(tmp_path: Path, data: object, words: str) -> None:
    path = tmp_path / "x.link.json"
    path.write_bytes(data if isinstance(data, bytes) else msgspec.json.encode(data))
    with pytest.raises(InputError) as raised:
        load_link(path)
    assert words in str(raised.value)
    assert str(path) in str(raised.value)


@pytest.mark.parametrize("name", ["no.csv", "no.link.json"])
def test_a_file_that_is_not_there(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match="there is no file"):
        parse_link(str(tmp_path / name))
