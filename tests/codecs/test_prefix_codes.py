"""Prefix codes: optimal ones, DEFLATE's own way to write them, many bits at once."""

from __future__ import annotations

import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from splitpoint.codecs.prefix_codes import (
    LONGEST_CODE,
    SYMBOLS,
    block_header,
    canonical_code,
    code_lengths,
    inflate,
    pack_bits,
    read_numbers,
    write_numbers,
)
from splitpoint.errors import InputError


@given(st.lists(st.floats(1e-9, 1e9), min_size=2, max_size=300))
def test_codes_are_complete_and_near_the_entropy(weights: list[float]) -> None:
    lengths = code_lengths(weights)
    assert max(lengths) <= LONGEST_CODE
    assert sum(2.0**-n for n in lengths) == 1
    shares = np.array(weights) / sum(weights)
    bits, entropy = float(shares @ lengths), -float(shares @ np.log2(np.maximum(shares, 1e-300)))
    assert entropy - 1e-6 <= bits <= entropy + 1.02


def test_the_example_of_rfc_1951() -> None:
    codes = canonical_code(np.array([3, 3, 3, 3, 3, 2, 4, 4], np.uint8))
    bits = [f"{int(c):0{n}b}"[::-1] for c, n in zip(codes, (3, 3, 3, 3, 3, 2, 4, 4), strict=True)]
    assert bits == ["010", "011", "100", "101", "110", "00", "1110", "1111"]


@given(st.lists(st.integers(0, 255), min_size=1, max_size=400), st.integers(0, 2**32))
def test_zlib_decodes_what_is_packed(symbols: list[int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    lengths = np.array(code_lengths(rng.exponential(size=SYMBOLS) ** 4 + 1e-12), np.uint8)
    header = block_header(lengths)
    assert len(header) == 140
    ends = np.unique([len(symbols), *rng.integers(1, len(symbols) + 1, 3)])
    packed, sizes = pack_bits(canonical_code(lengths)[symbols], lengths[symbols].astype(np.int64), ends)
    assert packed.size == sum(sizes)
    got, at = b"", 0
    for size, count in zip(sizes, np.diff(ends, prepend=0), strict=True):
        got += inflate(header, packed[at : at + size].tobytes(), int(count))
        at += size
    assert list(got) == symbols


def test_a_whole_block_is_one_that_zlib_reads_to_its_end() -> None:
    lengths = np.array(code_lengths([1.0] * SYMBOLS), np.uint8)
    end = pack_bits(canonical_code(lengths)[[5, 256]], lengths[[5, 256]].astype(np.int64), np.array([2]))[0]
    decoder = zlib.decompressobj(-15)
    assert decoder.decompress(block_header(lengths) + end.tobytes()) == b"\5"
    assert decoder.eof


def test_bits_that_end_early() -> None:
    lengths = np.array(code_lengths([1.0] * SYMBOLS), np.uint8)
    for block in (b"", b"\0", b"\xff\xff\xff"):
        with pytest.raises(InputError):
            inflate(block_header(lengths), block, 4)


def test_nothing_is_packed_into_nothing() -> None:
    packed, sizes = pack_bits(np.zeros(0, np.uint64), np.zeros(0, np.int64), np.zeros(0, np.int64))
    assert (packed.size, sizes) == (0, [])


@given(st.lists(st.integers(0, (1 << 28) - 1)))
def test_numbers(values: list[int]) -> None:
    data = b"x" + write_numbers(values)
    assert read_numbers(data, 1, len(values)) == (values, len(data))


@pytest.mark.parametrize("data", [b"", b"\x80", b"\xff" * 5])
def test_numbers_that_do_not_end(data: bytes) -> None:
    with pytest.raises(InputError):
        read_numbers(data, 0, 1)
