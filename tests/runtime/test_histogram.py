"""Counts in buckets that are each twice as long as the one before."""

from __future__ import annotations

import pytest

from splitpoint.runtime.histogram import BOUNDS_S, Histogram, Tally


def histogram(*values: float) -> Histogram:
    tally = Tally()
    for value in values:
        tally.add(value)
    return tally.histogram()


@pytest.mark.parametrize("seconds", [0.0, 0.5e-6, 1.5e-6, 3e-3, 0.9, 700.0])
def test_a_value_is_in_the_bucket_between_its_bounds(seconds: float) -> None:
    found = histogram(seconds)
    (bucket,) = [k for k, count in enumerate(found.counts) if count]
    assert seconds < BOUNDS_S[bucket]
    assert bucket == 0 or seconds >= BOUNDS_S[bucket - 1]
    assert (found.count, found.total_s) == (1, seconds)


def test_what_is_beyond_every_bound_is_counted_all_the_same() -> None:
    found = histogram(1e9, -1e-3)
    assert found.counts[-1] == 1
    assert found.counts[0] == 1, "a clock that goes back"
    assert found.count == 2
    assert found.quantile(1.0) == float("inf")


def test_quantiles_are_bounds() -> None:
    found = histogram(*[1.5e-3] * 90, *[30e-3] * 10)
    assert found.quantile(0.5) == found.quantile(0.9) == pytest.approx(2.048e-3)
    assert found.quantile(0.91) == found.quantile(1.0) == pytest.approx(32.768e-3)
    assert histogram().quantile(0.5) == 0.0
