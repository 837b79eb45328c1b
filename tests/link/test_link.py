"""Links as values, as text and as files; the transfer model; the estimator in virtual time."""

from __future__ import annotations

from math import inf, nan

import pytest

from splitpoint.errors import UsageError
from splitpoint.link import Link
from splitpoint.link.presets import PRESETS


@pytest.mark.parametrize("field", ["up_mbps", "down_mbps"])
@pytest.mark.parametrize("rate", [0.0, -1.0, nan, inf, -inf])
def test_a_rate_must_be_one(field: str, rate: float) -> None:
    with pytest.raises(UsageError, match=f"a link's {field} must be from .* Mbit/s, not"):
        Link(**{"up_mbps": 1.0, "down_mbps": 1.0, "rtt_ms": 1.0, field: rate})


@pytest.mark.parametrize("field", ["rtt_ms", "jitter_ms", "software_ms"])
@pytest.mark.parametrize("time", [-0.001, nan, inf])
def test_a_time_must_be_one(field: str, time: float) -> None:
    with pytest.raises(UsageError, match=f"a link's {field} must be from 0"):
        Link(**{"up_mbps": 1.0, "down_mbps": 1.0, "rtt_ms": 1.0, field: time})


def test_a_transfer_is_a_round_trip_and_the_bytes_both_ways() -> None:
    link = PRESETS["wifi5"]
    assert link.transfer_ms(150_000, 4000) == link.rtt_ms + link.up_ms(150_000) + link.down_ms(4000)
    assert link.up_ms(150_000) == pytest.approx(12.0)


def test_what_software_adds_is_part_of_a_transfer_and_told() -> None:
    link = Link(10, 20, 40, software_ms=0.5)
    assert link.beside_ms == 40.5
    assert link.transfer_ms(1000, 1000) == pytest.approx(Link(10, 20, 40).transfer_ms(1000, 1000) + 0.5)
    assert str(link) == "10 Mbit/s up, 20 down, round trip 40 ms, software 0.5 ms"
    assert "software" not in str(Link(10, 20, 40))
