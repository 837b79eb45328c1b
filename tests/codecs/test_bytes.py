"""Arrays as callers have them and bytes as receivers have them: what all codecs check."""

from __future__ import annotations

import numpy as np
import pytest
from codec_arrays import (
    NAMES,
    TENSORS,
    example,
    features,
    there_and_back,
)

from splitpoint.codecs import open_codec
from splitpoint.errors import InputError
from splitpoint.tensors import spec_of


@pytest.mark.parametrize("name", TENSORS)
def test_arrays_as_callers_have_them(name: str) -> None:
    plain = features((4, 6, 8, 10))
    codec = open_codec(name)
    expected = codec.encode(plain).tobytes()
    wide = np.zeros((4, 6, 8, 20), np.float32)
    wide[..., ::2] = plain
    backward = plain[::-1, :, ::-1].copy()[::-1, :, ::-1]
    unaligned = np.frombuffer(b"x" + plain.tobytes(), np.uint8)[1:].view(np.float32).reshape(plain.shape)
    frozen = plain.copy()
    frozen.flags.writeable = False
    for other in (wide[..., ::2], backward, plain.astype(">f4"), np.asfortranarray(plain), unaligned, frozen):
        assert codec.encode(other).tobytes() == expected
    assert np.array_equal(
        there_and_back(name, plain.T), codec.decode(codec.encode(plain.T.copy()), spec_of("x", plain.T))
    )


@pytest.mark.parametrize("name", NAMES)
def test_bytes_as_receivers_have_them(name: str) -> None:
    codec, array = open_codec(name), example(name)
    spec, data = spec_of("x", array), codec.encode(array)
    expected = codec.decode(data, spec)
    unaligned = np.frombuffer(b"xyz" + data.tobytes(), np.uint8)[3:]  # read-only, too
    apart = np.repeat(data, 2)[::2]
    before = array.copy()
    for other in (unaligned, apart):
        assert np.array_equal(codec.decode(other, spec), expected)
    assert np.array_equal(array, before)


@pytest.mark.parametrize("name", TENSORS)
def test_another_number_of_bytes_is_refused(name: str) -> None:
    codec, array = open_codec(name), example(name)
    spec, data = spec_of("x", array), codec.encode(array)
    for other in (data[:-1], data[:0], np.append(data, np.uint8(0)), np.zeros(codec.most(spec) + 1, np.uint8)):
        with pytest.raises(InputError, match=r"^x: float32\[1,8,12,11\] "):
            codec.decode(other, spec)
