"""Tables as bytes: canonical, whole, bounded."""

from __future__ import annotations

import hashlib
import struct
from dataclasses import replace

import numpy as np
import pytest
from codec_arrays import allocates_at_most
from klt_arrays import SHAPES, like_features, refusal, tables_for

from splitpoint.codecs.klt import Klt
from splitpoint.codecs.klt_tables import MAX_TABLES_BYTES, KltTables, check_shape
from splitpoint.errors import InputError
from splitpoint.tensors import spec_of


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_there_and_back(shape: tuple[int, ...]) -> None:
    tables = tables_for(shape)
    data = tables.to_bytes()
    again = KltTables.from_bytes(data)
    assert again.to_bytes() == data
    assert again.hash == tables.hash == hashlib.sha256(data).hexdigest()
    assert again.shape == shape
    array = like_features(shape, 1, seed=1)
    assert np.array_equal(Klt("klt:50", again).encode(array), Klt("klt:50", tables).encode(array))


def test_they_cannot_be_changed() -> None:
    for tables in (tables_for(SHAPES[0]), KltTables.from_bytes(tables_for(SHAPES[0]).to_bytes())):
        for array in (tables.mean, tables.bands, tables.matrices, tables.units, tables.scales, tables.lengths):
            with pytest.raises(ValueError, match="read-only"):
                array[...] = 0


def test_a_layout_that_does_not_change() -> None:
    """The head of tables of float[24], by docs/codecs.md: whoever changes it makes another version."""
    data = tables_for(SHAPES[3]).to_bytes()
    magic, rank, bands, classes, lowest = struct.unpack_from("<4sBBBb", data)
    assert (magic, rank, bands, lowest + classes) == (b"KLT2", 1, 1, 7)
    assert struct.unpack_from("<I", data, 12) == (24,)
    assert len(data) == 16 + 4 * 24 + 1 + 24 * 24 + 4 * 24 + 24 + 133 * classes


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_shorter_and_longer_one_is_refused(shape: tuple[int, ...]) -> None:
    data = tables_for(shape).to_bytes()
    for size in {*range(64), *range(0, len(data), 97), len(data) - 1}:
        with pytest.raises(InputError):
            KltTables.from_bytes(data[:size])
    with pytest.raises(InputError, match="have"):
        KltTables.from_bytes(data + b"\0")
    with pytest.raises(InputError, match="at most 8 MiB"):
        KltTables.from_bytes(data + bytes(MAX_TABLES_BYTES))


@pytest.mark.parametrize("at", range(16))
def test_no_head_makes_it_allocate(at: int) -> None:
    data = bytearray(tables_for(SHAPES[0]).to_bytes())
    with allocates_at_most(1 << 20):
        for value in range(256):
            data[at] = value
            assert len(refusal(lambda: KltTables.from_bytes(bytes(data)))) < 300


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_damaged_tables_are_refused_or_only_wrong(shape: tuple[int, ...]) -> None:
    data, rng = tables_for(shape).to_bytes(), np.random.default_rng(0)
    array = like_features(shape, 1, seed=2)
    honest = Klt("klt:60", tables_for(shape)).encode(array)
    decoded = 0
    for turn in range(120):
        broken = bytearray(data)
        for _ in range(1 + turn % 3):
            broken[rng.integers(len(data))] = rng.integers(256)

        def use(data: bytes = bytes(broken)) -> None:
            klt = Klt("klt:60", KltTables.from_bytes(data))
            klt.decode(honest, spec_of("x", array))
            klt.encode(array)

        words = refusal(use)
        assert len(words) < 300
        decoded += not words
    assert decoded


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"mean": np.full(24, np.nan, np.float32)}, "not finite"),
        ({"units": np.full((1, 24), np.inf, np.float32)}, "not finite"),
        ({"units": np.full((1, 24), -600, np.float32)}, "larger than any"),
        ({"bands": np.array([1], np.uint8)}, "band"),
        ({"exponent": 600}, "scale or a step"),
        ({"middle": -2000}, "scale or a step"),
        ({"lowest": 3}, "lack classes"),
    ],
)
def test_numbers_that_no_calibration_has(change: dict[str, object], words: str) -> None:
    tables = replace(tables_for(SHAPES[3]), **change)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=words):
        KltTables.from_bytes(tables.to_bytes())


def test_codes_that_are_not_complete() -> None:
    tables = tables_for(SHAPES[3])
    for symbol, length in ((0, 0), (0, 1), (255, 3), (256, 0)):
        lengths = tables.lengths.copy()
        lengths[-1, symbol] = length
        with pytest.raises(InputError, match="prefix code"):
            KltTables.from_bytes(replace(tables, lengths=lengths).to_bytes())


def test_a_matrix_without_an_inverse() -> None:
    tables = replace(tables_for(SHAPES[3]), matrices=np.zeros((1, 24, 24), np.int8))
    with pytest.raises(InputError, match="cannot be inverted"):
        Klt("klt:50", KltTables.from_bytes(tables.to_bytes())).encode(like_features(SHAPES[3], 1))


@pytest.mark.parametrize("shape", [(), (1, 2, 3, 4), (0, 4, 4), (70_000,), (4000,), (2048, 64, 64)])
def test_shapes_that_there_are_no_tables_for(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="codec tables"):
        check_shape(shape)


@pytest.mark.parametrize(("exponent", "middle"), [(512, -1024), (-512, 1024), (512, 1024), (-512, -1024)])
def test_the_farthest_scales_and_steps(exponent: int, middle: int) -> None:
    tables = replace(tables_for(SHAPES[0]), exponent=exponent, middle=middle)
    klt, array = Klt("klt:50", KltTables.from_bytes(tables.to_bytes())), like_features(SHAPES[0], 1)
    spec = spec_of("x", array)
    words = refusal(lambda: klt.decode(klt.encode(array), spec))
    assert words == "" or "nothing like" in words
    for offset in (-256, 256):
        data = np.frombuffer(np.int16(offset).tobytes() + bytes(40), np.uint8)
        assert "broken bytes" in refusal(lambda data=data: klt.decode(data, spec))  # type: ignore[misc]
