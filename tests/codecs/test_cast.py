"""raw keeps every bit; fp16 says what it cannot hold: every half, ties, and numpy as the oracle."""

from __future__ import annotations

import numpy as np
import pytest
from codec_arrays import (
    FLOATS,
    HALF,
    RAW,
    there_and_back,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from splitpoint.codecs import open_codec
from splitpoint.codecs.cast import from_half, to_half
from splitpoint.errors import InputError
from splitpoint.tensors import Array


@given(hnp.arrays(st.sampled_from(["<u2", "<u4", "<u8"]), st.integers(0, 40)))
@settings(max_examples=100, deadline=None)
def test_raw_keeps_every_bit_of_a_float(bits: Array) -> None:
    values = bits.view(f"float{bits.itemsize * 8}")  # NaNs with anything in them
    for name in RAW:
        assert there_and_back(name, values).tobytes() == values.tobytes()


@pytest.mark.parametrize("name", HALF)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_half_passes_nan_and_infinity_and_refuses_what_is_too_large(name: str, dtype: str) -> None:
    odd = np.array([np.nan, np.inf, -np.inf, 1.5, -65504, 65519.99, 1e-8, 0], dtype)
    decoded = there_and_back(name, odd)
    assert np.array_equal(decoded, odd.astype(np.float16).astype(dtype), equal_nan=True)
    for large in (65520, -65520, np.finfo(dtype).max, -1e38):
        for beside in ([], [np.nan], [np.inf]):
            with pytest.raises(InputError, match=r"beyond 65504.*send it raw"):
                open_codec(name).encode(np.array([1, large, *beside], dtype))


# -- half precision -------------------------------------------------------------------------------------------------


def test_every_half_is_exact_both_ways() -> None:
    halves = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    finite = halves[np.isfinite(halves)]
    exact = finite.astype(np.float32)
    assert from_half(finite).tobytes() == exact.tobytes()
    assert to_half(exact).tobytes() == finite.tobytes()
    # NaNs and infinities among them: by the other way round.
    assert from_half(halves).view(np.uint32).tobytes() == halves.astype(np.float32).view(np.uint32).tobytes()
    for dtype in FLOATS:
        array = halves.astype(dtype)
        decoded = there_and_back("fp16", array)
        assert np.array_equal(decoded, array, equal_nan=True)
        assert np.array_equal(np.signbit(decoded), np.signbit(array))


def test_ties_go_to_the_even_half() -> None:
    halves = np.arange(0x0400, 0x7BFF, dtype=np.uint16)  # the normal ones
    low, high = halves.view(np.float16).astype(np.float32), (halves + 1).view(np.float16).astype(np.float32)
    middle = (low + high) / 2
    for sign in (1, -1):
        assert np.array_equal(to_half(sign * middle), (sign * middle).astype(np.float16))
        for to in (0, np.float32(np.inf)):
            beside = sign * np.nextafter(middle, np.float32(to))
            assert np.array_equal(to_half(beside), beside.astype(np.float16))


def assert_rounds_like_numpy(values: Array) -> None:
    ours, numpys = to_half(values), values.astype(np.float16)
    differ = ours.view(np.uint16) != numpys.view(np.uint16)
    assert (np.abs(values[differ]) < 2.0**-14).all()
    assert (np.abs(ours.astype(float) - numpys.astype(float)) <= 2.0**-24).all()
    # Only what lies (nearly) in the middle between two halves: neither of the two is nearer by more than this.
    exact = values[differ].astype(float)
    away = np.abs(ours[differ].astype(float) - exact) - np.abs(numpys[differ].astype(float) - exact)
    assert (np.abs(away) <= 2.0**-36).all()


def test_floats_round_as_numpys_do() -> None:
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 1 << 32, 400_000, dtype=np.uint32).view(np.float32)
    small = (rng.standard_normal(400_000) * 2.0**-15).astype(np.float32)
    # Ties and their neighbours where halves lose digits, and an odd number of pieces.
    ties = ((np.arange(2048) + 0.5) * 2.0**-24).astype(np.float32)
    near = np.concatenate([np.nextafter(ties, np.float32(0)), ties, np.nextafter(ties, np.float32(1))])
    for values in (bits[np.abs(bits) < 65520], small, near, -near, np.float32([0, -0.0, 1e-45, -1e-38, 65519.99])):
        assert_rounds_like_numpy(np.ascontiguousarray(values))


@given(hnp.arrays(np.float32, st.integers(0, 50), elements=st.floats(-65519, 65519, width=32)))
@settings(max_examples=200, deadline=None)
def test_any_floats_round_as_numpys_do(values: Array) -> None:
    assert_rounds_like_numpy(values)
