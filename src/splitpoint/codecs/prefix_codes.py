"""Prefix codes as DEFLATE (RFC 1951) has them: how long each is, its bits, many of them packed at once.

zlib decodes them in C, from the standard library: a block header that both sides know is put before the bits.
"""

from __future__ import annotations

import heapq
import zlib
from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from splitpoint.errors import InputError
from splitpoint.tensors import Array

#: No code of a DEFLATE block is longer.
LONGEST_CODE = 15
#: The literals and the end of a block: codes of these are in a header.
SYMBOLS = 257


def code_lengths(weights: Sequence[float]) -> list[int]:
    """Bits of an optimal prefix code (Huffman, 1952) for symbols with these weights, all above 0, at least two.

    >>> code_lengths([8, 4, 2, 1, 1])
    [1, 2, 3, 4, 4]

    Where one would be longer than 15 bits, small weights are raised until none is.
    """
    least = 0.0
    while True:
        heap: list[tuple[float, int, tuple[int, ...]]] = [(max(w, least), k, (k,)) for k, w in enumerate(weights)]
        heapq.heapify(heap)
        lengths = [0] * len(heap)
        while len(heap) > 1:
            (a, _, left), (b, order, right) = heapq.heappop(heap), heapq.heappop(heap)
            for k in left + right:
                lengths[k] += 1
            heapq.heappush(heap, (a + b, order, left + right))
        if max(lengths) <= LONGEST_CODE:
            return lengths
        least = max(2 * least, sum(weights) * 2.0 ** -(LONGEST_CODE + 3))


def canonical_code(lengths: Array) -> Array:
    """uint64[symbols]: the code of each symbol, by the lengths of all as RFC 1951 (3.2.2) says, first bit lowest."""
    codes = np.zeros(len(lengths), np.uint64)
    code, last = 0, 0
    for symbol in np.lexsort((np.arange(len(lengths)), lengths)):
        length = int(lengths[symbol])
        if length:
            code <<= length - last
            codes[symbol] = int(f"{code:0{length}b}"[::-1], 2)
            code, last = code + 1, length
    return codes


def block_header(lengths: Array) -> bytes:
    """What DEFLATE has before the bits of a last block with these code lengths (uint8[257]), in whole bytes.

    An empty block of fixed codes, for its 10 bits, and a dynamic one whose lengths are 4 bits each: 257 of them, and
    two distances that are never used.
    """
    first = [0, 1, 0] + [0] * 7 + [1, 0, 1] + [0] * 5 + [1, 0, 0, 0, 0] + [1] * 4
    # Code lengths of the code lengths, in RFC 1951's order: 16, 17 and 18 (repetitions) have none, all others 4 bits.
    first += [0, 0, 0] * 3 + [0, 0, 1] * 16
    nibbles = np.append(lengths, np.zeros(2, np.uint8))
    bits = (nibbles[:, None] >> np.array([3, 2, 1, 0])) & 1
    return np.packbits(np.append(first, bits.reshape(-1)).astype(np.uint8), bitorder="little").tobytes()


def inflate(header: bytes, block: bytes, symbols: int) -> bytes:
    """The so many symbols that `block` begins with; InputError if there are not as many."""
    try:
        # No window: there are no matches. What would come after the last symbol is never decoded.
        got = zlib.decompressobj(-9).decompress(header + block, symbols)
    except zlib.error as exc:
        raise InputError(f"bits that are no code: {exc}") from exc
    if len(got) != symbols:
        raise InputError(f"{len(got)} symbols instead of {symbols}")
    return got


def pack_bits(codes: Array, lengths: Array, ends: Array) -> tuple[Array, list[int]]:
    """(uint8[bytes], bytes of each block): `codes` (uint64[n]) of 1 to 32 bits one after the other, lowest bit first;
    blocks are codes up to each of `ends`, and begin with a whole byte. `codes` and `lengths` (int64[n]) are changed:
    fresh memory for every step would cost more than the steps.
    """
    if not codes.size:
        return np.empty(0, np.uint8), [0] * len(ends)
    until = np.cumsum(lengths)
    block_ends = until[ends - 1]
    sizes = (np.diff(block_ends, prepend=0) + 7) >> 3
    shift = 8 * (np.cumsum(sizes) - sizes) - np.append(0, block_ends[:-1])
    at = np.subtract(until, lengths, out=until)
    for (start, stop), by in zip(pairwise([0, *ends.tolist()]), shift.tolist(), strict=True):
        at[start:stop] += by
    word, bit = np.right_shift(at, 6, out=lengths), np.bitwise_and(at, 63, out=at).view(np.uint64)
    # A code begins in every word: the codes of each are one run, and its last one may reach into the next word.
    firsts = np.append(0, np.flatnonzero(word[1:] != word[:-1]) + 1)
    lasts = np.append(firsts[1:] - 1, codes.size - 1)
    packed = np.zeros(firsts.size + 1, "<u8")
    packed[1:] = (codes[lasts] >> np.uint64(1)) >> (np.uint64(63) - bit[lasts])
    packed[:-1] |= np.bitwise_or.reduceat(np.left_shift(codes, bit, out=codes), firsts)
    return packed.view(np.uint8)[: int(sizes.sum())], sizes.tolist()


def write_numbers(values: Sequence[int]) -> bytes:
    """Whole numbers from 0 on, 7 bits a byte, lowest first; the high bit says that more follow (LEB128)."""
    out = bytearray()
    for value in values:
        while value > 127:
            out.append(value & 127 | 128)
            value >>= 7
        out.append(value)
    return bytes(out)


def read_numbers(data: bytes, at: int, count: int) -> tuple[list[int], int]:
    """(so many numbers that begin at `at`, where they end); InputError if they are cut short, or have over 28 bits."""
    values = []
    for _ in range(count):
        value = 0
        for shift in (0, 7, 14, 21):
            if at >= len(data):
                raise InputError("it is cut short")
            byte = data[at]
            at += 1
            value |= (byte & 127) << shift
            if byte < 128:
                break
        else:
            raise InputError("a length has too many digits")
        values.append(value)
    return values, at
