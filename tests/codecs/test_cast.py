"""raw keeps every bit; fp16 says what it cannot hold."""

from __future__ import annotations

import numpy as np
import pytest
from codec_arrays import (
    HALF,
    RAW,
    there_and_back,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from splitpoint.codecs import open_codec
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
