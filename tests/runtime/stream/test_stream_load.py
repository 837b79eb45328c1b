"""What a stream asks of a plan."""

from __future__ import annotations

from math import inf

import pytest

from splitpoint.planning.plans import Band, HopCosts, HostCosts, Option
from splitpoint.runtime.stream.stream_load import cheaper, judge, window


def option(throughput: float, total_ms: float = 100.0, refused: str = "", cut: str = "a") -> Option:
    band = Band(total_ms, total_ms, total_ms)
    hop = HopCosts(cut, nodes=(), crossing=(), up_nbytes=1, down_nbytes=1, up=band, down=band)
    hosts = HostCosts(band, band), HostCosts(band, Band(0.0, 0.0, 0.0))
    return Option(kind="split", hosts=hosts, hops=(hop,), total=band, throughput=throughput, refused=refused)


@pytest.mark.parametrize(
    ("rate", "objective", "words"),
    [
        (10.0, "latency", "light load: 10/s arrive and 25/s are possible"),
        (25.0, "latency", "light load"),
        (30.0, "throughput", "heavy load: 30/s arrive; planned for throughput: 40/s, instead of 25/s"),
        (60.0, "throughput", "not enough for all of them"),
        (inf, "throughput", "as fast as they are answered"),
    ],
)
def test_the_load_decides_what_is_planned_for(rate: float, objective: str, words: str) -> None:
    load = judge(rate, option(25.0), option(40.0))
    assert load.objective == objective
    assert words in load.why
    assert ("not enough" in load.why) == (rate == 60.0)


def test_under_a_heavy_load_the_quicker_of_two_equals_is_kept() -> None:
    load = judge(inf, option(25.0), option(25.1))
    assert load.objective == "latency"
    assert "has the most throughput, too" in load.why


def test_a_window_keeps_the_slowest_stage_busy() -> None:
    assert window(option(50.0, total_ms=60.0)) == 4  # three stages of 20 ms: three under way, and one more
    assert window(option(100.0, total_ms=90.0)) == 10  # a long round trip
    assert window(option(1000.0, total_ms=1000.0)) == 32
    assert window(option(20.0, total_ms=50.0)) == 2  # all on the edge
    assert window(option(inf)) == 2


def test_what_is_cheaper_keeps_to_the_constraints() -> None:
    best = option(10.0)
    slower, alike, better, most = option(5.0), option(10.5), option(20.0), option(30.0)
    refused = option(50.0, refused="its accuracy is not measured")
    assert cheaper([most, refused, slower, best, alike, better], best) == (better, most)
    assert cheaper([slower, refused], best) == ()
    ladder = [option(10.0 * 2**k) for k in range(1, 6)]
    assert [o.throughput for o in cheaper(ladder, best)] == [20.0, 40.0, 320.0]
