"""Sizes that are products of a batch."""

from __future__ import annotations

from splitpoint.models.rows.step import Size, unknown


def test_sizes_multiply_and_divide() -> None:
    rows, seq = Size(2, (), True), Size(3, ("seq",))
    assert rows.times(seq) == Size(6, ("seq",), True)
    assert rows.times(rows) is None
    assert Size(6, ("seq",), True).over(seq) == rows
    assert rows.over(seq) is None
    assert Size(7).over(Size(2)) is None
    assert Size(7).over(Size(0)) is None
    assert Size(2**16).times(Size(2**16)) is None
    number = unknown()
    assert number.over(number) is None
