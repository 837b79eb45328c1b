"""Bars of a terminal."""

from __future__ import annotations

import re

import msgspec
import pytest

from splitpoint.planning.plans import Band, Option
from splitpoint.report.bars import bar, bar_lines

ZERO = Band(0.0, 0.0, 0.0)


def option(kind: str, cut: str, total_ms: float, codec: str = "raw") -> Option:
    host = {"compute": ZERO, "encode": ZERO}
    hop = {
        "cut": cut, "nodes": [], "crossing": [{"name": cut, "codec": codec, "nbytes": 9}], "up_nbytes": 9,
        "down_nbytes": 9, "up": ZERO, "down": ZERO,
    }  # fmt: skip
    fields = {
        "kind": kind, "hosts": [host, host], "hops": [hop], "total": (total_ms, 0, 0), "throughput": 1,
        "exact": codec == "raw",
    }  # fmt: skip
    return msgspec.convert(fields, Option)


DEVICE, RAW = option("device", "output", 160.0), option("server", "input", 640.0)
SPLIT = option("split", "blocks.5", 99.6, "klt:45")
ROWS = [(DEVICE, 158.2, 0), (RAW, 632.8, 150_585), (SPLIT, 79.1, 4380)]


@pytest.mark.parametrize(("value", "drawn"), [(0.0, ""), (1.0, "█"), (1.5, "█▌"), (7.9, "███████▉"), (8.0, "████████")])
def test_a_bar_is_as_long_as_its_value(value: float, drawn: str) -> None:
    assert bar(value, 8.0, 8) == drawn


def test_a_line_has_predicted_beside_measured_and_a_bar() -> None:
    title, device, raw, split = bar_lines(ROWS, SPLIT, 100)
    assert title.split() == ["predicted", "measured", "sent", "kept"]
    assert device.split() == ["all", "on", "the", "edge", "160", "ms", "158", "ms", "█" * 6, "-", "100", "%"]
    assert "█" * 24 in raw
    assert raw.endswith("150.6 kB  100 %")
    assert split.startswith(" → split: blocks.5, klt:45")
    assert "█" * 3 + " " in split
    assert split.endswith("?"), "nobody has measured what this codec keeps"


@pytest.mark.parametrize("width", [80, 100, 160])
def test_lines_fit_and_bars_begin_below_each_other(width: int) -> None:
    title, *lines = bar_lines(ROWS, SPLIT, width)
    assert max(len(line) for line in (title, *lines)) <= width
    assert len({re.search("[▏▎▍▌▋▊▉█]", line).start() for line in lines}) == 1  # type: ignore[union-attr]
    assert len({len(line) for line in (title, *lines)}) == 1


def test_where_it_is_narrow_a_column_goes_for_the_bars() -> None:
    assert bar_lines(ROWS, SPLIT, 70)[0].split() == ["predicted", "measured", "sent"]
    assert bar_lines(ROWS, SPLIT, 20)[0].split() == ["predicted", "measured", "sent"], "they stay readable"
