"""Links as values, as text and as files; the transfer model; the estimator in virtual time."""

from __future__ import annotations

from math import inf, nan

import pytest

from splitpoint.errors import UsageError
from splitpoint.link import Link


@pytest.mark.parametrize("field", ["up_mbps", "down_mbps"])
@pytest.mark.parametrize("rate", [0.0, -1.0, nan, inf, -inf])
def test_a_rate_must_be_one(field: str, rate: float) -> None:
    with pytest.raises(UsageError, match=f"a link's {field} must be from .* Mbit/s, not"):
        Link(**{"up_mbps": 1.0, "down_mbps": 1.0, "rtt_ms": 1.0, field: rate})


@pytest.mark.parametrize("field", ["rtt_ms", "jitter_ms"])
@pytest.mark.parametrize("time", [-0.001, nan, inf])
def test_a_time_must_be_one(field: str, time: float) -> None:
    with pytest.raises(UsageError, match=f"a link's {field} must be from 0"):
        Link(**{"up_mbps": 1.0, "down_mbps": 1.0, "rtt_ms": 1.0, field: time})
