"""One contract for every codec, what each one promises besides, and bytes from a stranger."""

from __future__ import annotations

import io
import itertools
import threading
import tracemalloc
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from math import prod

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image, JpegImagePlugin

from splitpoint.codecs import CODECS, open_codec
from splitpoint.codecs.affine import channels
from splitpoint.codecs.half import from_half, to_half
from splitpoint.codecs.speed import measure, sample
from splitpoint.decoding import MAX_PIXELS
from splitpoint.errors import InputError, UsageError
from splitpoint.tensors import ITEM_SIZES, Array, TensorSpec, spec_of

TENSORS = tuple(name for name in CODECS if name != "jpeg")
NAMES = (*TENSORS, "jpeg:90")
AFFINE = ("int8", "int4", "int8+zstd", "int4+zstd")
HALF = ("fp16", "fp16+zstd")
RAW = ("raw", "raw+zstd")
FLOATS = ("float16", "float32", "float64")
#: Every rank from 0 to 5, the channel rule's branches, an odd number of values, more than the codecs handle at a time.
SHAPES = (
    (), (1,), (37,), (5, 64), (64, 5), (1, 197, 24), (2, 33, 7), (2, 7, 33), (1, 8, 7, 7), (3, 5, 2, 2), (2, 3, 40, 41),
    (1, 4, 3, 5, 7), (1, 1280, 1, 1), (1, 2, 210, 190), (1, 1, 70_001), (33_000, 2),
)  # fmt: skip
EMPTY = ((0,), (0, 3), (1, 0, 4), (2, 3, 0, 5), (1, 2, 3, 4, 0))
OTHERS = ("float16", "float32", "float64", "int64", "bool", "uint8")


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


# -- the contract ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", TENSORS)
def test_there_and_back(name: str, shape: tuple[int, ...]) -> None:
    for dtype in OTHERS:
        array = features(shape, dtype)
        if open_codec(name).accepts(spec_of("x", array)):
            assert_close(name, array, there_and_back(name, array))
        else:
            assert dtype not in FLOATS


@pytest.mark.parametrize("shape", EMPTY, ids=str)
@pytest.mark.parametrize("name", TENSORS)
def test_empty_tensors(name: str, shape: tuple[int, ...]) -> None:
    assert there_and_back(name, np.zeros(shape, np.float32)).size == 0
    with pytest.raises(InputError):
        open_codec(name).decode(np.zeros(1, np.uint8), TensorSpec("x", "float32", shape))


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


@pytest.mark.parametrize("name", NAMES)
def test_encoding_does_not_change_its_input_and_repeats(name: str) -> None:
    array = example(name)
    before = array.copy()
    first = open_codec(name).encode(array).copy()
    assert np.array_equal(open_codec(name).encode(array), first)
    assert np.array_equal(array, before)


@pytest.mark.parametrize("name", NAMES)
def test_what_is_accepted_is_what_encodes_and_decodes(name: str) -> None:
    codec = open_codec(name)
    pictures = [(1, 4, 5, 1), (1, 4, 5, 3), (1, 4, 5, 4), (2, 4, 5, 3), (4, 5, 3), (1, 0, 5, 3), (1, 3, 4, 5)]
    for dtype, shape in itertools.product((*ITEM_SIZES, "complex64", "str32"), pictures):
        spec = TensorSpec("x", dtype, tuple(shape))
        array = np.zeros(shape, "U1" if dtype == "str32" else dtype)
        wanted = dtype in ITEM_SIZES if name in RAW else dtype in FLOATS
        if name == "jpeg:90":
            wanted = dtype == "uint8" and shape in ((1, 4, 5, 1), (1, 4, 5, 3))
        assert codec.accepts(spec) == wanted, spec.type
        if wanted:
            assert np.array_equal(there_and_back(name, array), array)
        else:
            with pytest.raises(InputError, match=r"does not take .*send it raw"):
                codec.encode(array)
            with pytest.raises(InputError):
                codec.decode(np.zeros(64, np.uint8), spec)


@pytest.mark.parametrize("name", NAMES)
def test_names_and_the_table(name: str) -> None:
    codec = open_codec(name)
    assert codec.name == name
    assert codec is open_codec(name)
    assert codec.exact == (name in RAW)
    assert codec.sized == (name in ("raw", "fp16", "int8", "int4"))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("", "known: raw"), ("int-8", "did you mean int8"), ("INT8", "no codec"), ("int8+zstd+zstd", "no codec"),
        ("zstd", "no codec"), ("jpeg", "needs a quality"), ("jpeg:0", "no codec"), ("jpeg:101", "no codec"),
        ("jpeg:٣", "no codec"), ("jpeg:90 ", "no codec"), ("int8:90", "no codec"), ("x" * 9999, "no codec"),
    ],
)  # fmt: skip
def test_unknown_names(name: str, words: str) -> None:
    with pytest.raises(UsageError, match=words) as caught:
        open_codec(name)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("name", [n for n in NAMES if not open_codec(n).sized])
def test_estimates_are_of_the_right_size(name: str) -> None:
    spec = (
        TensorSpec("x", "uint8", (1, 224, 224, 3)) if name == "jpeg:90" else TensorSpec("x", "float32", (1, 64, 28, 28))
    )
    size = open_codec(name).encode(sample(spec)).size
    assert 0.3 < open_codec(name).nbytes(spec) / size < 3


def test_threads_may_share_a_codec() -> None:
    arrays = [features((1, 16, 30, 30), seed=k) for k in range(8)]
    start = threading.Barrier(8)

    def work(k: int) -> bool:
        start.wait(10)
        return all(
            np.array_equal(there_and_back(name, arrays[k]), expected[name][k]) for _ in range(5) for name in TENSORS
        )

    expected = {name: [there_and_back(name, a) for a in arrays] for name in TENSORS}
    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(8)))


# -- values ---------------------------------------------------------------------------------------------------------

#: Finite, all magnitudes; float16's too large ones are left to their own test.
WIDE = st.floats(-60000, 60000, width=32)


@given(
    st.sampled_from(TENSORS),
    hnp.arrays(
        st.sampled_from(FLOATS),
        hnp.array_shapes(min_dims=0, max_dims=5, min_side=0, max_side=9),
        elements=st.floats(-60000, 60000, width=16),
        fill=st.floats(-60000, 60000, width=16),
    ),
)
@settings(max_examples=300, deadline=None)
def test_any_finite_values_come_back_close(name: str, array: Array) -> None:
    assert_close(name, array, there_and_back(name, array)) if array.size else there_and_back(name, array)


@given(
    st.sampled_from(AFFINE), hnp.arrays(np.float32, (2, 3, 40), elements=WIDE), st.sampled_from([1e-40, 1e-30, 1, 1e30])
)
@settings(max_examples=60, deadline=None)
def test_affine_bounds_hold_at_every_magnitude(name: str, array: Array, factor: float) -> None:
    array = (array * np.float32(factor)).astype(np.float32)
    assert_close(name, array, there_and_back(name, array))


@given(
    hnp.arrays(
        st.sampled_from([d for d in ITEM_SIZES if d not in FLOATS]),
        hnp.array_shapes(min_dims=0, max_dims=5, min_side=0),
    )
)
@settings(max_examples=100, deadline=None)
def test_integers_travel_exactly_or_not_at_all(array: Array) -> None:
    for name in TENSORS:
        if name in RAW:
            assert there_and_back(name, array).tobytes() == array.tobytes()
        else:
            with pytest.raises(InputError, match="send it raw"):
                open_codec(name).encode(array)


@given(hnp.arrays(st.sampled_from(["<u2", "<u4", "<u8"]), st.integers(0, 40)))
@settings(max_examples=100, deadline=None)
def test_raw_keeps_every_bit_of_a_float(bits: Array) -> None:
    values = bits.view(f"float{bits.itemsize * 8}")  # NaNs with anything in them
    for name in RAW:
        assert there_and_back(name, values).tobytes() == values.tobytes()


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


def test_the_bytes_of_docs_codecs_md() -> None:
    """The worked examples there."""
    two = np.array([1.0, -2.0], np.float32)
    assert open_codec("raw").encode(two).tobytes().hex() == "0000803f000000c0"
    assert open_codec("fp16").encode(two).tobytes().hex() == "003c00c0"
    three = np.array([-1.0, 0.0, 2.0], np.float32)
    assert open_codec("int8").encode(three).tobytes().hex() == "000080bfc1c0403c0055ff"
    assert open_codec("int4").encode(three).tobytes().hex() == "000080bfcdcc4c3e500f"


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


# -- jpeg -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("colours", [1, 3])
def test_jpeg_is_a_baseline_file_that_others_read(colours: int) -> None:
    array = photo(61, 83, colours)
    errors = []
    for quality in (10, 75, 95, 100):
        codec = open_codec(f"jpeg:{quality}")
        data = codec.encode(array)
        with Image.open(io.BytesIO(data.tobytes())) as image:
            assert image.format == "JPEG"
            assert image.mode == ("RGB" if colours == 3 else "L")
            assert "progressive" not in image.info
            seen = np.asarray(image).reshape(array.shape)
        decoded = there_and_back(codec.name, array)
        assert np.array_equal(decoded, seen)
        errors.append(float(np.abs(decoded.astype(float) - array).mean()))
    assert errors == sorted(errors, reverse=True)
    assert errors[0] > errors[-1]
    if colours == 1:
        assert errors[-1] < 1


@pytest.mark.parametrize("shape", [(1, 1, 1, 3), (1, 1, 1, 1), (1, 1, 700, 3), (1, 700, 1, 1), (1, 257, 129, 3)])
def test_jpeg_of_noise_stays_below_the_most(shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    for array in (rng.integers(0, 256, shape, np.uint8), 255 * rng.integers(0, 2, shape, np.uint8)):
        for quality in (1, 50, 100):
            there_and_back(f"jpeg:{quality}", array)


def test_jpeg_sides() -> None:
    accepts = open_codec("jpeg:90").accepts
    assert accepts(TensorSpec("x", "uint8", (1, 1, 65500, 3)))
    assert not accepts(TensorSpec("x", "uint8", (1, 1, 65501, 3)))
    assert not accepts(TensorSpec("x", "uint8", (1, 65500, MAX_PIXELS // 65500 + 1, 3)))
    assert not accepts(TensorSpec("x", "uint8", (1, "height", "width", 3)))


def segment(marker: int, body: bytes) -> bytes:
    return bytes([0xFF, marker]) + (len(body) + 2).to_bytes(2, "big") + body


def bad_jpegs(spec: TensorSpec) -> dict[str, bytes]:
    """What an attacker may send for `spec`; Pillow itself would have decoded most of them."""
    array = photo(int(spec.shape[1]), int(spec.shape[2]))
    data = open_codec("jpeg:90").encode(array).tobytes()
    size, scan = data.index(b"\xff\xc0"), data.index(b"\xff\xda")
    huge = data[: size + 5] + b"\xff\xdc\xff\xdc" + data[size + 9 :]
    progressive, other, grey = io.BytesIO(), io.BytesIO(), io.BytesIO()
    image = Image.fromarray(array[0])
    image.save(progressive, "JPEG", progressive=True)
    image.rotate(90, expand=True).save(other, "JPEG")
    image.convert("L").save(grey, "JPEG")
    one = b"".join(segment(0xDA, bytes([1, k, 0x11 * (k > 1), 0, 63, 0])) for k in (1, 2, 3))
    return {
        "a bomb of 65500 x 65500": huge,
        "progressive": progressive.getvalue(),
        "another size": other.getvalue(),
        "grey": grey.getvalue(),
        "a scan for each channel, again and again": data[:scan] + 50 * one + b"\xff\xd9",
        "thousands of comments": data[:2] + 3000 * segment(0xFE, b"") + data[2:],
        "Exif": data[:2] + segment(0xE1, b"Exif\0\0II*\0" + bytes(60)) + data[2:],
        "a header without an end": data[:2] + 300 * segment(0xE0, bytes(20)) + data[2:],
        "a PNG": b"\x89PNG\r\n\x1a\n" + bytes(100),
        "nothing": b"",
        "its first bytes": data[:3],
        "no size": data[:size] + data[scan:],
    }


@pytest.mark.parametrize("kind", list(bad_jpegs(TensorSpec("x", "uint8", (1, 40, 56, 3)))))
def test_jpegs_that_pillow_never_sees(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = TensorSpec("x", "uint8", (1, 40, 56, 3))
    data = np.frombuffer(bad_jpegs(spec)[kind], np.uint8)
    opened: list[object] = []

    class Watched(JpegImagePlugin.JpegImageFile):
        def __init__(self, *arguments: object) -> None:
            opened.append(arguments)
            super().__init__(*arguments)

    monkeypatch.setattr(JpegImagePlugin, "JpegImageFile", Watched)
    codec = open_codec("jpeg:90")
    with pytest.raises(InputError, match=r"^x: uint8\[1,40,56,3\] "):
        codec.decode(data, spec)
    assert not opened
    codec.decode(codec.encode(photo()), spec)
    assert len(opened) == 1


def test_scans_behind_the_picture_are_not_gone_over() -> None:
    array = photo(256, 256)
    codec, spec = open_codec("jpeg:90"), spec_of("x", array)
    data = codec.encode(array).tobytes()
    again = segment(0xDA, bytes([3, 1, 0, 2, 0x11, 3, 0x11, 0, 63, 0]))
    for bad in (data[:-2] + 5000 * again + b"\xff\xd9", data + 5000 * again):
        try:
            decoded = codec.decode(np.frombuffer(bad, np.uint8), spec)
        except InputError:
            continue
        assert np.array_equal(decoded, codec.decode(codec.encode(array), spec))


# -- bytes from a stranger ------------------------------------------------------------------------------------------


@contextmanager
def allocates_at_most(nbytes: int) -> Iterator[None]:
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] <= nbytes
    finally:
        tracemalloc.stop()


def decode_or_refuse(name: str, data: bytes, spec: TensorSpec) -> None:
    """Decoding gives a tensor of `spec` or InputError, and takes no more memory than the two sizes allow."""
    codec = open_codec(name)
    # Twice: steps unpacked, an unaligned copy. The rest is what a codec needs for the smallest tensor.
    room = 2 * (spec.nbytes + codec.most(spec)) + len(data) + (1 << 17)
    with allocates_at_most(room):
        try:
            decoded = codec.decode(np.frombuffer(data, np.uint8), spec)
        except InputError:
            return
    assert (decoded.dtype.name, decoded.shape) == (spec.dtype, spec.shape)
    if spec.dtype == "bool":
        assert decoded.view(np.uint8).max(initial=0) <= 1
    if name in AFFINE:
        assert np.isfinite(decoded).all()


def a_spec(name: str, draw: st.DrawFn) -> TensorSpec:
    if name.startswith("jpeg"):
        shape = (1, draw(st.integers(1, 40)), draw(st.integers(1, 40)), draw(st.sampled_from([1, 3])))
        return TensorSpec("x", "uint8", shape)
    dtypes = tuple(ITEM_SIZES) if name in RAW else FLOATS
    return TensorSpec("x", draw(st.sampled_from(dtypes)), draw(hnp.array_shapes(min_dims=0, max_dims=5, max_side=6)))


@st.composite
def strangers(draw: st.DrawFn) -> tuple[str, bytes, TensorSpec]:
    """Any bytes, often as many as are wanted, perhaps in a frame or behind a header that is honest."""
    name = draw(st.sampled_from(NAMES))
    spec = a_spec(name, draw)
    codec = open_codec(name.removesuffix("+zstd"))
    size = draw(st.sampled_from([codec.nbytes(spec), draw(st.integers(0, 300))]))
    data = draw(st.binary(min_size=min(size, 2000), max_size=min(size, 2000)))
    if name.endswith("+zstd") and draw(st.booleans()):
        data = zstandard.ZstdCompressor(write_content_size=draw(st.booleans())).compress(data)
    if name.startswith("jpeg") and draw(st.booleans()):
        honest = codec.encode(np.zeros(spec.shape, np.uint8)).tobytes()
        data = honest[: honest.index(b"\xff\xda") + draw(st.integers(0, 14))] + data
    return name, data, spec


@given(strangers())
@settings(max_examples=400, deadline=None)
def test_any_bytes(stranger: tuple[str, bytes, TensorSpec]) -> None:
    decode_or_refuse(*stranger)


@st.composite
def damaged(draw: st.DrawFn) -> tuple[str, bytes, TensorSpec]:
    """An honest encoding with a byte changed, or some missing, or some more."""
    name = draw(st.sampled_from(NAMES))
    spec = a_spec(name, draw)
    data = bytearray(open_codec(name).encode(sample(spec)).tobytes())
    what = draw(st.sampled_from(["change", "cut", "add"]))
    at = draw(st.integers(0, max(0, len(data) - 1)))
    if what == "change" and data:
        data[at] ^= draw(st.integers(1, 255))
    elif what == "cut":
        del data[at:]
    else:
        data += draw(st.binary(min_size=1, max_size=20))
    return name, bytes(data), spec


@given(damaged())
@settings(max_examples=400, deadline=None)
def test_damaged_bytes(stranger: tuple[str, bytes, TensorSpec]) -> None:
    decode_or_refuse(*stranger)


@pytest.mark.parametrize("name", TENSORS)
def test_another_number_of_bytes_is_refused(name: str) -> None:
    codec, array = open_codec(name), example(name)
    spec, data = spec_of("x", array), codec.encode(array)
    for other in (data[:-1], data[:0], np.append(data, np.uint8(0)), np.zeros(codec.most(spec) + 1, np.uint8)):
        with pytest.raises(InputError, match=r"^x: float32\[1,8,12,11\] "):
            codec.decode(other, spec)


@pytest.mark.parametrize("name", [n for n in TENSORS if n.endswith("+zstd")])
def test_zstd_bombs_are_not_unpacked(name: str) -> None:
    codec, array = open_codec(name), example(name)
    spec, inner = spec_of("x", array), open_codec(name.removesuffix("+zstd")).encode(array).tobytes()
    plain = zstandard.ZstdCompressor()
    huge = plain.compress(bytes(64 << 20))
    block = (len(inner) << 3 | 1).to_bytes(3, "little") + inner  # the last one, not compressed
    window = b"\x28\xb5\x2f\xfd\x80\x88" + len(inner).to_bytes(4, "little") + block
    bombs = {
        "says what it is": huge,
        "keeps it to itself": zstandard.ZstdCompressor(write_content_size=False).compress(bytes(64 << 20)),
        "a small one first": plain.compress(inner) + huge,
        "two": plain.compress(inner) * 2,
        "one byte less": plain.compress(inner[:-1]),
        "one byte more": plain.compress(inner + b"\0"),
        "honest, but wants a window of 128 MiB": window,
        "honest, but does not say its size": zstandard.ZstdCompressor(write_content_size=False).compress(inner),
        "skippable": b"\x50\x2a\x4d\x18" + len(inner).to_bytes(4, "little") + inner,
        "skippable, then honest": b"\x50\x2a\x4d\x18\x04\0\0\0abcd" + plain.compress(inner),
    }
    for kind, bomb in bombs.items():
        data = np.frombuffer(bomb, np.uint8)
        with allocates_at_most(1 << 18), pytest.raises(InputError, match=r"^x: "):
            print(kind, codec.decode(data, spec))  # read where it is not refused


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


# -- speed ----------------------------------------------------------------------------------------------------------


class Timed:
    """A codec whose work takes virtual time: a fixed part, and a part for each byte of the tensor."""

    name, exact, sized = "timed", True, True

    def __init__(self, fixed_s: float, s_per_mb: float) -> None:
        self.now, self.rounds, self._fixed, self._slope = 0.0, 0, fixed_s, s_per_mb

    def clock(self) -> float:
        return self.now

    def accepts(self, spec: TensorSpec) -> bool:
        return spec.dtype == "float32"

    def nbytes(self, spec: TensorSpec) -> int:
        return spec.nbytes

    most = nbytes

    def encode(self, array: Array) -> Array:
        self.rounds += 1
        self.now += self._fixed + self._slope * array.nbytes / 1e6
        return np.zeros(array.nbytes, np.uint8)

    def decode(self, data: Array, spec: TensorSpec) -> Array:
        self.now += 2 * self._fixed + 3 * self._slope * spec.nbytes / 1e6
        return np.zeros(0)


def test_speed_finds_the_fixed_part_and_the_other() -> None:
    codec = Timed(fixed_s=0.002, s_per_mb=0.005)
    for shape in ((1, 64, 28, 28), (1, 197, 768), (7,), (), (1, 10), (2, 3, 0)):
        speed = measure(codec, TensorSpec("x", "float32", shape), clock=codec.clock)
        assert speed.encode_fixed_ms == pytest.approx(2)
        assert speed.encode_ms_per_mb == pytest.approx(5)
        assert speed.decode_fixed_ms == pytest.approx(4)
        assert speed.decode_ms_per_mb == pytest.approx(15)


def test_speed_of_tensors_whose_channel_is_larger_than_both_sizes() -> None:
    codec = Timed(fixed_s=0, s_per_mb=0.005)
    speed = measure(codec, TensorSpec("x", "float32", (1, 32, 512, 512)), clock=codec.clock)
    assert speed.encode_fixed_ms == 0
    assert speed.encode_ms_per_mb == pytest.approx(5)


def test_speed_keeps_to_its_budget_and_measures_at_least_thrice() -> None:
    quick, slow = Timed(1e-4, 0), Timed(10, 0)
    spec = TensorSpec("x", "float32", (1, 8, 8, 8))
    measure(quick, spec, budget_s=0.1, clock=quick.clock)
    assert 0.1 <= quick.now <= 0.102
    measure(slow, spec, budget_s=0.1, clock=slow.clock)
    assert slow.rounds == 2 + 2 * 3


def test_speed_of_what_is_not_taken() -> None:
    with pytest.raises(InputError, match="does not take int64"):
        measure(Timed(1, 1), TensorSpec("x", "int64", (4,)))
    with pytest.raises(InputError, match="does not take uint8"):
        measure(open_codec("jpeg:90"), TensorSpec("x", "uint8", (2, 8, 8, 3)))


@pytest.mark.parametrize("name", NAMES)
def test_speed_of_the_codecs_is_finite(name: str) -> None:
    speed = measure(open_codec(name), spec_of("x", example(name)), budget_s=0)
    for value in (speed.encode_fixed_ms, speed.encode_ms_per_mb, speed.decode_fixed_ms, speed.decode_ms_per_mb):
        assert 0 <= value < 1e4
