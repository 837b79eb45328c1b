"""Whole numbers as bits: exact where symbols hold, patched where not, in pieces that both sides cut alike."""

from __future__ import annotations

import numpy as np
import pytest
from klt_arrays import SHAPES, tables_for

from splitpoint.codecs.klt_symbols import MOST_VALUE, Codes, outside_of
from splitpoint.codecs.klt_tables import GROUPS, scale_of, step_of
from splitpoint.errors import InputError
from splitpoint.tensors import Array

STEPS = (-160, -96, -33, -8, 0, 7, 40, 130)


def sorted_scales(codes: Codes, shape: tuple[int, ...]) -> Array:
    tables = tables_for(shape)
    return scale_of(tables.scales.reshape(-1)[codes.order], tables.exponent)


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_whole_number_comes_back(shape: tuple[int, ...], step: int) -> None:
    """Magnitudes come back nearer to zero by a part of a step, but for zeros and what is patched."""
    codes, rng = Codes(tables_for(shape)), np.random.default_rng(0)
    means = sorted_scales(codes, shape) / step_of(step)
    for size in (0.0, 1.0, 30.0):
        values = np.rint(rng.laplace(scale=means * size + 1e-9)).astype(np.float32)
        values[rng.integers(values.size)] = 123_456
        data = codes.write(values.copy(), step)
        got = np.full(values.size, np.nan, np.float32)
        codes.read(data, step, got)
        assert np.array_equal(np.sign(got), np.sign(values))
        assert (np.abs(values) - np.abs(got) >= 0).all()
        assert (np.abs(values) - np.abs(got) < 0.5).all()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_spans_are_whole_symbols_without_a_gap(shape: tuple[int, ...]) -> None:
    codes = Codes(tables_for(shape))
    for step in STEPS:
        at = 0
        for s in codes.layout(step).spans:
            assert s.start == at < s.stop
            assert (s.stop - s.start) % GROUPS[s.grouping][1] == 0
            at = s.stop
        assert at <= codes.order.size


def test_what_is_outside_is_counted() -> None:
    codes = Codes(tables_for(SHAPES[0]))
    means = sorted_scales(codes, SHAPES[0])
    values = np.zeros(means.size, np.float32)
    assert outside_of(codes.write(values.copy(), 0)) == 0
    values[[3, 50, 200]] = np.rint(means[[3, 50, 200]] * [40, 40, 10] + 1)
    assert outside_of(codes.write(values.copy(), 0)) == 2


def test_numbers_that_a_float_does_not_hold_are_refused() -> None:
    codes = Codes(tables_for(SHAPES[0]))
    values = np.zeros(codes.order.size, np.float32)
    values[7] = MOST_VALUE
    with pytest.raises(InputError, match="nothing like"):
        codes.write(values, 0)


def test_patches_out_of_order_or_place() -> None:
    codes = Codes(tables_for(SHAPES[0]))
    values = np.zeros(codes.order.size, np.float32)
    values[[-2, -1]] = 100
    data = codes.write(values.copy(), 100)
    out = np.empty_like(values)
    codes.read(data, 100, out)
    first, second = data[-6:-4], data[-4:-2]
    for pair in (second + first, first + first, second + b"\xff\xff"):
        with pytest.raises(InputError, match="patches"):
            codes.read(data[:-6] + pair + data[-2:], 100, out)
