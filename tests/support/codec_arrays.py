"""Tensors that codecs are tried with, and the bounds that each codec promises."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from math import prod

import numpy as np

from splitpoint.codecs import CODECS, open_codec
from splitpoint.profile.codec_times import sample
from splitpoint.tensors import Array, TensorSpec, spec_of

TENSORS = tuple(name for name, entry in CODECS.items() if not entry.qualities)
NAMES = (*TENSORS, "jpeg:90", "jpeg444:90")
AFFINE = ("int8", "int4", "int8+zstd", "int4+zstd")
HALF = ("fp16", "fp16+zstd")
RAW = ("raw", "raw+zstd")
FLOATS = ("float16", "float32", "float64")


def features(shape: tuple[int, ...], dtype: str = "float32", seed: int = 0) -> Array:
    """Values around zero, a different range in every row."""
    rng = np.random.default_rng(seed)
    values = rng.standard_normal(shape) * rng.uniform(0.1, 50, shape[:2] + (1,) * (len(shape) - 2))
    if dtype == "bool":
        return np.asarray(values > 0)
    return np.asarray(values, dtype if dtype in FLOATS else np.int16).astype(dtype)


def photo(height: int = 40, width: int = 56, colours: int = 3) -> Array:
    spec = TensorSpec("photo", "uint8", (1, height, width, colours))
    return sample(spec)


def example(name: str) -> Array:
    return photo() if name.startswith("jpeg") else features((1, 8, 12, 11))


def there_and_back(name: str, array: Array) -> Array:
    codec, spec = open_codec(name), spec_of("x", array)
    data = codec.encode(array)
    assert data.dtype == np.uint8
    assert data.ndim == 1
    assert data.flags.c_contiguous
    assert data.size <= codec.most(spec)
    if codec.sized:
        assert data.size == codec.nbytes(spec)
    decoded = codec.decode(data, spec)
    assert (decoded.dtype, decoded.shape) == (np.dtype(spec.dtype), array.shape)
    assert decoded.flags.c_contiguous
    return decoded


def affine_bound(name: str, array: Array) -> Array:
    """The most that a value may move: half a step of its channel, and rounding. Worked out apart from the codec."""
    exact = array.astype(np.float64)
    shape = exact.shape
    if len(shape) == 3 and shape[1] >= 32:
        axes: tuple[int, ...] = (1,)
    elif len(shape) > 3 and prod(shape[2:]) >= 32:
        axes = tuple(range(2, len(shape)))
    elif len(shape) > 1 and prod(shape[1:]) >= 32:
        axes = tuple(range(1, len(shape)))
    else:
        axes = tuple(range(len(shape)))
    low, high = exact.min(axes, keepdims=True), exact.max(axes, keepdims=True)
    step = (high - low) / (15 if name.startswith("int4") else 255)
    number = np.float64 if array.dtype == np.float64 else np.float32
    largest = np.maximum(np.abs(low), np.abs(high))
    # Two roundings when it is decoded; a step below the smallest normal number counts as none.
    rounding = 2 * np.spacing(largest.astype(number)).astype(float) + 256 * float(np.finfo(number).tiny)
    if array.dtype == np.float16:
        rounding = rounding + np.spacing(largest.astype(np.float16)).astype(float)
    return np.broadcast_to(step * (0.5 + 1e-4) + rounding, shape)


def assert_close(name: str, array: Array, decoded: Array) -> None:
    """What the codec called `name` promises of finite values."""
    native = array.astype(array.dtype.newbyteorder("="))
    if name in RAW:
        assert decoded.tobytes() == native.tobytes()
    elif name in HALF:
        with np.errstate(over="ignore"):
            nearest = native.astype(np.float16).astype(native.dtype)
        near = np.abs(native) < 2.0**-14
        assert np.array_equal(decoded[~near], nearest[~near])
        assert (np.abs(decoded - native)[near] <= 2.0**-25 * (1 + 1e-3)).all()
    else:
        assert (np.abs(decoded.astype(float) - native.astype(float)) <= affine_bound(name, native)).all()


# -- bytes from a stranger ------------------------------------------------------------------------------------------


@contextmanager
def allocates_at_most(nbytes: int) -> Iterator[None]:
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] <= nbytes
    finally:
        tracemalloc.stop()
