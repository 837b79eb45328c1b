"""Numbers as people read them: few digits, never an exponent, and within half of the last digit."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from splitpoint.units import count, counted, mbps, ms, rate, size

SCALES = {"B": 1, "kB": 1e3, "MB": 1e6, "GB": 1e9}


@given(st.floats(0, 9e12))
def test_a_size_says_nearly_how_many_bytes(nbytes: float) -> None:
    number, unit = size(nbytes).split()
    assert float(number) * SCALES[unit] == pytest.approx(nbytes, rel=0.051, abs=0.51)
    assert float(number) <= 1000 or unit == "GB"


@given(st.floats(0.001, 1e6))
def test_times_rates_and_speeds_have_no_exponent(value: float) -> None:
    for text in (ms(value), mbps(value), rate(value).removesuffix("/s")):
        assert "e" not in text
        assert float(text) == pytest.approx(value, rel=0.006, abs=0.006)


@pytest.mark.parametrize(
    ("number", "said"), [(0, "0"), (999, "999"), (3_500_000, "3.5 M"), (4.1e9, "4.1 G"), (2e13, "20.0 T")]
)
def test_counts(number: float, said: str) -> None:
    assert count(number) == said


def test_one_thing_and_several() -> None:
    assert (counted(1, "weight"), counted(0, "weight"), counted(2, "weight")) == ("1 weight", "0 weights", "2 weights")
