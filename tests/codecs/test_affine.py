"""int8 and int4: bounds at every magnitude, what is refused, which values share a channel."""

from __future__ import annotations

from math import prod

import numpy as np
import pytest
from codec_arrays import (
    AFFINE,
    FLOATS,
    assert_close,
    features,
    there_and_back,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from splitpoint.codecs import open_codec
from splitpoint.codecs.affine import channels
from splitpoint.errors import InputError
from splitpoint.tensors import Array, TensorSpec

# -- values ---------------------------------------------------------------------------------------------------------

#: Finite, all magnitudes; float16's too large ones are left to their own test.
WIDE = st.floats(-60000, 60000, width=32)


@given(
    st.sampled_from(AFFINE), hnp.arrays(np.float32, (2, 3, 40), elements=WIDE), st.sampled_from([1e-40, 1e-30, 1, 1e30])
)
@settings(max_examples=60, deadline=None)
def test_affine_bounds_hold_at_every_magnitude(name: str, array: Array, factor: float) -> None:
    array = (array * np.float32(factor)).astype(np.float32)
    assert_close(name, array, there_and_back(name, array))


@pytest.mark.parametrize("name", AFFINE)
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_affine_refuses_what_is_not_finite(name: str, dtype: str, bad: float) -> None:
    for at in (0, 50, 99):
        array = features((1, 100), dtype)
        array[0, at] = bad
        with pytest.raises(InputError, match="NaN, infinite or too large"):
            open_codec(name).encode(array)


@pytest.mark.parametrize("name", AFFINE)
@pytest.mark.parametrize("dtype", FLOATS)
def test_affine_at_the_ends_of_the_range(name: str, dtype: str) -> None:
    most = np.finfo(dtype).max
    both = np.array([-most, most] * 32, dtype)
    if dtype == "float16":  # worked out in float32
        assert np.array_equal(there_and_back(name, both), both)
    else:
        with pytest.raises(InputError, match="too large"):
            open_codec(name).encode(both)
    wide = (both * dtype_of(dtype)(0.25)).astype(dtype)
    assert_close(name, wide, there_and_back(name, wide))


def dtype_of(name: str) -> type[np.floating]:
    return np.dtype(name).type


@pytest.mark.parametrize("name", AFFINE)
def test_constant_channels_and_zeros_are_exact(name: str) -> None:
    for value in (0.0, -0.0, 0.1, -3e38, 1e-45, 65504.0):
        constant = np.full((1, 3, 8, 8), value, np.float32)
        assert np.array_equal(there_and_back(name, constant), constant)
    relu = np.maximum(features((1, 5, 9, 9)), 0)
    relu[0, 2] = 7.5  # one constant among others
    decoded = there_and_back(name, relu)
    assert (decoded[relu == 0] == 0).all()
    assert np.array_equal(decoded[0, 2], relu[0, 2])
    ends = relu.reshape(5, 81)
    assert np.array_equal(decoded.reshape(5, 81).min(axis=1), ends.min(axis=1))
    assert np.allclose(decoded.reshape(5, 81).max(axis=1), ends.max(axis=1), rtol=1e-6)


@pytest.mark.parametrize("name", AFFINE)
def test_an_example_does_not_depend_on_its_batch(name: str) -> None:
    for shape in ((1, 6, 8, 8), (1, 40, 5), (1, 100), (1, 40, 1, 1)):
        one, other = features(shape), 1000 * features(shape, seed=1)
        assert np.array_equal(there_and_back(name, np.concatenate([one, other]))[:1], there_and_back(name, one))


def test_the_channel_rule() -> None:
    for shape, table in {
        (): 1, (9,): 1, (5, 64): 5, (64, 5): 1, (2, 32, 7): 14, (2, 31, 7): 2, (1, 64, 28, 28): 64,
        (2, 64, 5, 6): 2, (2, 3, 2, 4, 4): 6, (4, 3, 1, 1): 1, (0, 5): 0,
    }.items():  # fmt: skip
        spec = TensorSpec("x", "float32", shape)
        layout, numbers = channels(spec)
        assert prod(numbers) == table, shape
        assert prod(layout) == spec.elements
        assert open_codec("int8").nbytes(spec) == 8 * table + spec.elements
        assert open_codec("int4").nbytes(spec) == 8 * table + (spec.elements + 1) // 2
        double = TensorSpec("x", "float64", shape)
        assert open_codec("int8").nbytes(double) == 16 * table + spec.elements


@pytest.mark.parametrize("name", ["int8", "int4"])
@pytest.mark.parametrize(
    ("low", "scale"),
    [(np.nan, 1), (np.inf, 1), (-np.inf, 1), (0, np.nan), (0, np.inf), (0, -1), (3e38, 1e37), (0, 1e38)],
)
def test_affine_numbers_that_no_tensor_has(name: str, low: float, scale: float) -> None:
    codec, spec = open_codec(name), TensorSpec("x", "float32", (40,))
    data = np.zeros(codec.nbytes(spec), np.uint8)
    codec.decode(data, spec)
    data[:8] = np.array([low, scale], np.float32).view(np.uint8)
    with pytest.raises(InputError, match=r"that no int. tensor has"):
        codec.decode(data, spec)


def test_bits_behind_the_last_value_are_refused() -> None:
    codec, spec = open_codec("int4"), TensorSpec("x", "float32", (33,))
    data = np.zeros(codec.nbytes(spec), np.uint8)
    data[-1] = 0x0F
    codec.decode(data, spec)
    data[-1] = 0x1F
    with pytest.raises(InputError, match="behind its last value"):
        codec.decode(data, spec)
