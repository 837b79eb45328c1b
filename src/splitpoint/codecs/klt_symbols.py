"""Whole numbers ↔ bits, for the codec ``klt``: static prefix codes that zlib decodes.

The coefficients come in the order of their scales, largest first, and are cut into classes by scale ÷ step. In a class
some values (`GROUPS`) make one symbol, so that a symbol has bits enough for a prefix code to come near its entropy. The
codes are canonical ones as DEFLATE has them: a decoder puts the block header that the tables imply, and that never
travels, before a class's bits, and inflates. What no symbol expresses is 0 there, and patched behind it.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np

from splitpoint.codecs.klt_tables import GROUPS, TOP_CLASS, KltTables, scale_of, step_of
from splitpoint.codecs.prefix_codes import (
    SYMBOLS,
    block_header,
    canonical_code,
    inflate,
    pack_bits,
    read_numbers,
    write_numbers,
)
from splitpoint.errors import InputError
from splitpoint.tensors import Array

#: From here on a float32 does not have every whole number.
MOST_VALUE = 1 << 23
#: With them, symbols express as much.
_MOST_LOW_BITS = 16
#: A value of so many times its coefficient's mean magnitude is outside of what was calibrated.
_OUTSIDE = 32.0
UNLIKE = "the tensor is nothing like what its codec tables were made from: send it as int8, or raw"
#: Of each grouping: what a value's place in a symbol is worth.
DIGITS = [np.float32(2 * reach + 1) ** np.arange(values, dtype=np.float32) for reach, values in GROUPS]


class ClassSpan(NamedTuple):
    """Coefficients [start, stop) of the sorted ones: those of one class."""

    table: int
    """The place of the class's code in the tables."""
    grouping: int
    low_bits: int
    """Bits of each value that travel apart, because the class's values are too large for symbols."""
    start: int
    stop: int

    @property
    def symbols(self) -> int:
        return (self.stop - self.start) // GROUPS[self.grouping][1]


class Layout(NamedTuple):
    """How the coefficients are cut up at one step."""

    spans: tuple[ClassSpan, ...]
    runs: tuple[tuple[ClassSpan, slice], ...]
    """Neighbouring spans that group alike, as one; which of the symbols are theirs."""
    ends: Array
    """int64[spans]: where each one's symbols end."""
    coded: Array
    """intp[symbols]: the place of the code of the symbol 0 … 0 of its table, among all codes."""
    restored: Array
    """intp[symbols]: where its table begins among what symbols stand for."""
    reach: Array
    """float32[coefficients]: the largest magnitude that symbols express."""


class Codes:
    """The prefix codes of tables, as both directions need them."""

    def __init__(self, tables: KltTables) -> None:
        self._tables = tables
        scales = tables.scales.reshape(-1)
        self.order = np.argsort(~scales, kind="stable")
        """Places of the coefficients by scale, largest first."""
        self._scales = scale_of(scales[self.order], tables.exponent)
        self._at_least = np.append(np.cumsum(np.bincount(scales, minlength=256)[::-1])[::-1], 0)
        self._lengths = tables.lengths.reshape(-1).astype(np.int64)
        self._codes = np.concatenate([canonical_code(row) for row in tables.lengths])
        self._headers = [block_header(row) for row in tables.lengths]
        self._values = [np.concatenate([_group_values(k, c) for c in tables.centroids]) for k in range(len(GROUPS))]
        self._index = np.dtype("<u2" if self.order.size <= 1 << 16 else "<u4")
        self.layout = lru_cache(maxsize=16)(self._layout)

    def _layout(self, step: int) -> Layout:
        """`step` is in sixteenths of an octave. From the top, each class takes what has its scale and fills whole
        symbols; what is left over is the next one's. What no class takes is not coded.
        """
        lowest, offset = self._tables.lowest, 2 * self._tables.exponent - step
        spans, start = [], 0
        for k in range((2 * 255 + offset) >> 3, lowest - 1, -1):
            low_bits = min(_MOST_LOW_BITS, max(0, (k - TOP_CLASS + 1) // 2))
            table = min(k - 2 * low_bits, TOP_CLASS) - lowest
            grouping = int(self._tables.groupings[table])
            reached = int(self._at_least[min(256, max(0, (8 * k - offset + 1) // 2))])
            stop = reached - (reached - start) % GROUPS[grouping][1]
            if stop > start:
                spans.append(ClassSpan(table, grouping, low_bits, start, stop))
                start = stop
        runs: list[tuple[ClassSpan, slice]] = []
        reach = np.zeros(self.order.size, np.float32)
        symbols = 0
        for s in spans:
            reach[s.start : s.stop] = GROUPS[s.grouping][0] << s.low_bits
            last, its = runs[-1] if runs else (s, slice(0, 0))
            if runs and last.grouping == s.grouping and not last.low_bits:
                runs[-1] = last._replace(stop=s.stop), slice(its.start, symbols + s.symbols)
            else:
                runs.append((s, slice(symbols, symbols + s.symbols)))
            symbols += s.symbols
        counts = [s.symbols for s in spans]
        zero = [SYMBOLS * s.table + ((2 * GROUPS[s.grouping][0] + 1) ** GROUPS[s.grouping][1]) // 2 for s in spans]
        return Layout(
            tuple(spans), tuple(runs), np.cumsum(counts, dtype=np.int64), np.repeat(np.array(zero, np.intp), counts),
            np.repeat(np.array([256 * s.table for s in spans], np.intp), counts), reach,
        )  # fmt: skip

    def estimate(self, step: int) -> int:
        """Bytes that calibrated values take at `step`, by the lengths of their codes: near enough to plan by."""
        lengths = self._tables.lengths.astype(np.float64)
        bits = (lengths * np.where(lengths, 0.5**lengths, 0)).sum(axis=1)
        spans = self.layout(step).spans
        coded = sum(s.symbols * bits[s.table] + s.low_bits * (s.stop - s.start) for s in spans)
        return round(float(coded) / 8 + 2 * len(spans) + 6)

    def write(self, values: Array, step: int) -> bytes:
        """The bytes of `values`, whole numbers in float32[coefficients], sorted; they are changed.

        InputError for magnitudes of 2**23 and more.
        """
        layout = self.layout(step)
        beyond = np.flatnonzero(np.abs(values) > layout.reach)
        large = values[beyond]
        if large.size and np.abs(large).max() >= MOST_VALUE:
            raise InputError(UNLIKE)
        patches = large.astype(np.int32)
        values[beyond] = 0
        symbols = np.empty(layout.coded.size, np.float32)
        lows: list[tuple[int, Array]] = []
        for run, its in layout.runs:
            part = values[run.start : run.stop]
            if run.low_bits:
                high = np.floor(part * np.float32(0.5**run.low_bits))
                lows.append((run.low_bits, part - high * np.float32(2**run.low_bits)))
                part = high
            if GROUPS[run.grouping][1] == 1:
                symbols[its] = part
            else:
                np.dot(part.reshape(-1, GROUPS[run.grouping][1]), DIGITS[run.grouping], out=symbols[its])
        places = symbols.astype(np.intp)
        places += layout.coded
        stop = places.size
        codes = np.empty(stop + sum(low.size for _, low in lows), np.uint64)
        lengths = np.empty(codes.size, np.int64)
        self._codes.take(places, out=codes[:stop], mode="clip")
        self._lengths.take(places, out=lengths[:stop], mode="clip")
        for bits, low in lows:
            start, stop = stop, stop + low.size
            codes[start:stop], lengths[start:stop] = low, bits
        packed, sizes = pack_bits(codes, lengths, np.append(layout.ends, stop) if lows else layout.ends)
        wide = bool(beyond.size and np.abs(patches).max() > 127)
        outside = np.abs(patches) * np.float32(step_of(step)) > _OUTSIDE * self._scales[beyond]
        head = [2 * beyond.size + wide, int(np.count_nonzero(outside)), *sizes[: len(layout.spans)]]
        return b"".join(
            [
                write_numbers(head), packed.tobytes(), beyond.astype(self._index).tobytes(),
                patches.astype("<i4" if wide else "i1").tobytes(),
            ]
        )  # fmt: skip

    def read(self, data: bytes, step: int, values: Array) -> None:
        """Fill `values`, float32[coefficients], sorted, in steps, with what `data` says; InputError if it is not whole.

        Magnitudes are where their bin's calibrated values have their mean.
        """
        layout = self.layout(step)
        count = len(layout.spans)
        (beyond, outside, *sizes), at = read_numbers(data, 0, 2 + count)
        patched, wide = beyond >> 1, beyond & 1
        low_bits = [run.low_bits * (run.stop - run.start) for run, _ in layout.runs]
        low_size = (sum(low_bits) + 7) // 8
        index_size = patched * self._index.itemsize
        ends = at + sum(sizes), at + sum(sizes) + low_size, at + sum(sizes) + low_size + index_size
        if patched > values.size or outside > patched or len(data) != ends[2] + patched * (4 if wide else 1):
            raise InputError("its parts are not as long as it says")
        pieces = []
        for span, size in zip(layout.spans, sizes, strict=True):
            pieces.append(inflate(self._headers[span.table], data[at : at + size], span.symbols))
            at += size
        symbols = np.frombuffer(b"".join(pieces), np.uint8)
        places = symbols + layout.restored
        lows = np.unpackbits(np.frombuffer(data, np.uint8, low_size, ends[0]), bitorder="little")
        stop, low_at = 0, 0
        for (run, its), bits in zip(layout.runs, low_bits, strict=True):
            stop = run.stop
            part = values[run.start : stop]
            if run.low_bits:
                low = lows[low_at : low_at + bits].reshape(-1, run.low_bits) @ (1 << np.arange(run.low_bits))
                part[:] = (symbols[its].astype(np.int64) - GROUPS[run.grouping][0] << run.low_bits) + low
                low_at += bits
            else:
                grouped = part.reshape(-1, GROUPS[run.grouping][1])
                self._values[run.grouping].take(places[its], axis=0, out=grouped, mode="clip")
        values[stop:] = 0
        if patched:
            where = np.frombuffer(data, self._index, patched, ends[1])
            if where[-1] >= values.size or (where[1:] <= where[:-1]).any():
                raise InputError("it patches values that are not there, or not in order")
            values[where] = np.frombuffer(data, "<i4" if wide else "i1", patched, ends[2])


def outside_of(data: bytes) -> int:
    """How many coefficients of one example's payload the encoder found outside of what was calibrated."""
    (_, outside), _ = read_numbers(data, 0, 2)
    return outside


def _group_values(grouping: int, centroids: Array) -> Array:
    """float32[256, values]: what each symbol of a class stands for, in steps; rows that no code has are 0."""
    reach, values = GROUPS[grouping]
    magnitudes = np.arange(reach + 1, dtype=np.float32)
    magnitudes[1:] -= centroids[np.minimum(np.arange(reach), 2)] / np.float32(512)
    one = np.concatenate([-magnitudes[:0:-1], magnitudes])
    every = np.zeros((256, values), np.float32)
    places = np.arange(one.size**values)
    for k in range(values):
        every[places, k] = one[places // one.size**k % one.size]
    return every
