"""One contract for every codec, what each one promises besides, and bytes from a stranger."""

from __future__ import annotations

import itertools
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import zstandard
from codec_arrays import (
    AFFINE,
    FLOATS,
    NAMES,
    RAW,
    TENSORS,
    allocates_at_most,
    assert_close,
    example,
    features,
    there_and_back,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from splitpoint.codecs import open_codec
from splitpoint.errors import InputError, UsageError
from splitpoint.profile.codec_times import sample
from splitpoint.tensors import ITEM_SIZES, Array, TensorSpec, spec_of

#: Every rank from 0 to 5, the channel rule's branches, an odd number of values, more than the codecs handle at a time.
SHAPES = (
    (), (1,), (37,), (5, 64), (64, 5), (1, 197, 24), (2, 33, 7), (2, 7, 33), (1, 8, 7, 7), (3, 5, 2, 2), (2, 3, 40, 41),
    (1, 4, 3, 5, 7), (1, 1280, 1, 1), (1, 2, 210, 190), (1, 1, 70_001), (33_000, 2),
)  # fmt: skip
EMPTY = ((0,), (0, 3), (1, 0, 4), (2, 3, 0, 5), (1, 2, 3, 4, 0))
OTHERS = ("float16", "float32", "float64", "int64", "bool", "uint8")


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
        if name.startswith("jpeg"):
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
    alike, varied = np.zeros_like(example(name)), example(name)
    sizes = {codec.encode(array).size for array in (alike, varied)}
    assert codec.sized == (sizes == {codec.nbytes(spec_of("x", varied))})


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("", "known: raw"), ("int-8", "did you mean int8"), ("INT8", "no codec"), ("int8+zstd+zstd", "no codec"),
        ("zstd", "no codec"), ("jpeg", "needs a quality"), ("jpeg:0", "needs a quality"), ("jpeg:101", "a quality"),
        ("jpeg:٣", "needs a quality"), ("jpeg:90 ", "a quality"), ("int8:90", "no codec"), ("x" * 9999, "no codec"),
    ],
)  # fmt: skip
def test_unknown_names(name: str, words: str) -> None:
    with pytest.raises(UsageError, match=words) as caught:
        open_codec(name)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("name", [n for n in NAMES if not open_codec(n).sized])
def test_estimates_are_of_the_right_size(name: str) -> None:
    photo = TensorSpec("x", "uint8", (1, 224, 224, 3))
    spec = photo if name.startswith("jpeg") else TensorSpec("x", "float32", (1, 64, 28, 28))
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


def test_the_bytes_of_docs_codecs_md() -> None:
    """The worked examples there."""
    two = np.array([1.0, -2.0], np.float32)
    assert open_codec("raw").encode(two).tobytes().hex() == "0000803f000000c0"
    assert open_codec("fp16").encode(two).tobytes().hex() == "003c00c0"
    three = np.array([-1.0, 0.0, 2.0], np.float32)
    assert open_codec("int8").encode(three).tobytes().hex() == "000080bfc1c0403c0055ff"
    assert open_codec("int4").encode(three).tobytes().hex() == "000080bfcdcc4c3e500f"


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
