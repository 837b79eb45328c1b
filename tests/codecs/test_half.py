"""float32 ↔ float16: every half, ties, and numpy as the oracle."""

from __future__ import annotations

import numpy as np
from codec_arrays import (
    FLOATS,
    there_and_back,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from splitpoint.codecs.half import from_half, to_half
from splitpoint.tensors import Array

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
