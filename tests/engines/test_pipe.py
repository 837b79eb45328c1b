"""Headers and arrays through a pipe come out as they went in."""

from __future__ import annotations

import os
from collections.abc import Iterator
from threading import Thread

import msgspec
import numpy as np
import pytest

from splitpoint.engines import pipe
from splitpoint.tensors import TensorSpec

ARRAYS = [
    np.arange(24, dtype=np.float32).reshape(2, 3, 4),
    np.array(7, np.int64),
    np.zeros((0, 5), np.uint8),
    np.array([True, False]),
    np.ones((1, 64, 64, 32), np.float16),  # more than a pipe holds
]


@pytest.fixture
def ends() -> Iterator[tuple[int, int]]:
    """Where to read and where to write."""
    reading, writing = os.pipe()
    yield reading, writing
    os.close(reading)
    os.close(writing)


def test_a_message_and_its_arrays_arrive(ends: tuple[int, int]) -> None:
    reading, writing = ends
    message = pipe.PipeMessage(arrays=pipe.kinds(ARRAYS), nbytes=12)
    writer = Thread(target=pipe.write, args=(writing, message, ARRAYS))
    writer.start()
    came = pipe.read(reading)
    arrays = pipe.read_arrays(reading, came.arrays)
    writer.join()
    assert came == message
    for array, sent in zip(arrays, ARRAYS, strict=True):
        assert (array.dtype, array.shape) == (sent.dtype, sent.shape)
        np.testing.assert_array_equal(array, sent)


def test_what_to_compile_arrives(ends: tuple[int, int]) -> None:
    reading, writing = ends
    specs = (TensorSpec("x", "float32", ("batch", 3)),)
    build = pipe.Build("onnxruntime", "cpu", 1, 1 << 20, "f" * 64, specs, specs, ("a", "b"))
    pipe.write(writing, build)
    assert msgspec.msgpack.decode(pipe.read_header(reading), type=pipe.Build) == build


def test_the_end_of_the_other_process_is_told() -> None:
    reading, writing = os.pipe()
    os.write(writing, b"\x05\x00")  # half of a length
    os.close(writing)
    with pytest.raises(EOFError):
        pipe.read(reading)
    os.close(reading)


def test_arrays_are_listed_in_the_order_of_their_specs() -> None:
    arrays = {"b": ARRAYS[0].transpose(2, 0, 1), "a": ARRAYS[1]}
    first, second = pipe.listed([TensorSpec("a", "int64", ()), TensorSpec("b", "float32", (4, 2, 3))], arrays)
    assert first.shape == ()
    assert second.flags.c_contiguous
    np.testing.assert_array_equal(second, arrays["b"])
