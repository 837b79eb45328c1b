"""What a calibration knows of one tensor, as the codec ``klt`` needs it: a value, and its bytes.

    tables = KltTables.from_bytes(path.read_bytes())
    tables.hash                                # what both sides must have the same of

The bytes come from a stranger as often as from a file: every length is checked before anything of that size is
allocated, and the same tables have the same bytes everywhere (docs/codecs.md).
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass
from functools import cached_property
from math import prod

import numpy as np

from splitpoint.codecs.prefix_codes import LONGEST_CODE, SYMBOLS
from splitpoint.errors import InputError
from splitpoint.tensors import Array

#: The most that tables may have, in bytes: 2,800 channels' vectors, or 4 bands of 1,280 channels.
MAX_TABLES_BYTES = 8 << 20
_MAGIC = b"KLT2"
#: rank, bands, classes, the lowest class, the scales' exponent, the step of level 50; two bytes of zeros before it.
_HEAD = struct.Struct("<4sBBBbhh")
_MOST_RANK, _LONGEST = 3, 1 << 16
#: Scales are between 2**-64 and 2**64, in eighths of an octave; so the step of level 50, in sixteenths.
_MOST_SCALE, _MOST_STEP = 512, 1024
#: So no matrix has a number of 2**16 or more.
_MOST_UNIT = 512.0
#: The highest class has a mean of 8 to 11.3 steps: what is larger travels with its lowest bits apart.
TOP_CLASS = 6
LOWEST_CLASS = -16
#: How a class puts values into symbols: the largest magnitude, values a symbol. A symbol is a byte.
GROUPS = ((127, 1), (7, 2), (3, 2), (2, 3), (1, 5))
#: A class in the bytes: its grouping, three centroids, a code length of 4 bits for each of 256 symbols and the end.
_CLASS_BYTES = 1 + 3 + 129


@dataclass(frozen=True, eq=False)
class KltTables:
    """The transform and the codes of one tensor. Arrays are read-only.

    The tensor of one example is channels × positions, and so are its coefficients: frequencies × components.
    """

    shape: tuple[int, ...]
    """Of one example, without the batch axis: (channels, height, width), (tokens, features) or (features,)."""
    mean: Array
    """float32[channels]: what is subtracted from each channel."""
    bands: Array
    """uint8[frequencies]: which matrix each frequency has, in the order of rows, then columns."""
    matrices: Array
    """int8[bands, channels, channels]: a row is what one step of a component is in the channels, in its unit."""
    units: Array
    """float32[bands, channels]: what 1 in a row of a matrix stands for."""
    scales: Array
    """uint8[frequencies, channels]: a coefficient's mean magnitude is about 2**((scale + exponent) / 8)."""
    exponent: int
    middle: int
    """Level 50 has the step 2**(middle / 16)."""
    lowest: int
    """The lowest class that is coded; classes go up to `TOP_CLASS`."""
    groupings: Array
    """uint8[classes]: an index of `GROUPS`."""
    centroids: Array
    """uint8[classes, 3]: by how many 512ths of a step magnitudes 1, 2 and above lie nearer to zero than their bin's
    middle."""
    lengths: Array
    """uint8[classes, 257]: bits of the code of each symbol, 0 where there is none."""

    def __post_init__(self) -> None:
        for array in (
            self.mean, self.bands, self.matrices, self.units, self.scales, self.groupings, self.centroids, self.lengths,
        ):  # fmt: skip
            array.flags.writeable = False

    @property
    def channels(self) -> int:
        return axes_of(self.shape)[0]

    @cached_property
    def hash(self) -> str:
        """SHA-256 of the bytes, hexadecimal: the tables' name."""
        return hashlib.sha256(self.to_bytes()).hexdigest()

    def to_bytes(self) -> bytes:
        head = _HEAD.pack(
            _MAGIC, len(self.shape), len(self.matrices), len(self.groupings), self.lowest, self.exponent, self.middle
        )
        lengths = np.zeros((len(self.groupings), SYMBOLS + 1), np.uint8)
        lengths[:, :SYMBOLS] = self.lengths
        classes = np.hstack([self.groupings[:, None], self.centroids, lengths[:, 0::2] | lengths[:, 1::2] << 4])
        return b"".join(
            [
                head, struct.pack(f"<{len(self.shape)}I", *self.shape), self.mean.astype("<f4").tobytes(),
                self.bands.tobytes(), self.matrices.tobytes(), self.units.astype("<f4").tobytes(),
                self.scales.tobytes(), classes.tobytes(),
            ]
        )  # fmt: skip

    @staticmethod
    def from_bytes(data: bytes) -> KltTables:
        """The tables in `data`. InputError unless they are whole, and no more than `MAX_TABLES_BYTES`."""
        if len(data) > MAX_TABLES_BYTES:
            raise InputError(
                f"codec tables have at most {MAX_TABLES_BYTES >> 20} MiB, but these have {len(data)} bytes"
            )
        if len(data) < _HEAD.size or data[:4] != _MAGIC:
            raise InputError(
                "these bytes are no codec tables of this version: make them with splitpoint calibrate-codecs"
            )
        _, rank, bands, classes, lowest, exponent, middle = _HEAD.unpack_from(data)
        at = _HEAD.size + 4 * rank
        if not 1 <= rank <= _MOST_RANK or len(data) < at:
            raise InputError(f"codec tables are of tensors with 1 to {_MOST_RANK} axes beside the batch: these are not")
        shape = struct.unpack_from(f"<{rank}I", data, _HEAD.size)
        channels, frequencies = check_shape(shape)
        vectors = bands * channels
        sizes = (4 * channels, frequencies, vectors * channels, 4 * vectors, prod(shape), classes * _CLASS_BYTES)
        if len(data) != at + sum(sizes):
            raise InputError(
                f"codec tables of {shape} with {bands} bands have {at + sum(sizes)} bytes, but these have {len(data)}"
            )
        parts = []
        for size in sizes:
            parts.append(np.frombuffer(data, np.uint8, size, at))
            at += size
        mean, units = parts[0].view("<f4").astype(np.float32), parts[3].view("<f4").astype(np.float32)
        packed = parts[5].reshape(classes, _CLASS_BYTES)
        nibbles = np.stack([packed[:, 4:] & 15, packed[:, 4:] >> 4], axis=2).reshape(classes, SYMBOLS + 1)
        tables = KltTables(
            shape, mean, parts[1], parts[2].view(np.int8).reshape(bands, channels, channels),
            units.reshape(bands, channels), parts[4].reshape(frequencies, channels), exponent, middle, lowest,
            packed[:, 0], packed[:, 1:4], nibbles[:, :SYMBOLS],
        )  # fmt: skip
        if nibbles[:, SYMBOLS].any():
            raise InputError("the codec tables hold bits behind a class's last code length")
        tables.check()
        return tables

    def check(self) -> None:
        """InputError unless every number is one that tables may have: what decodes with them need not ask again."""
        if not np.isfinite(self.mean).all() or not (np.abs(self.units) < _MOST_UNIT).all():
            raise InputError("the codec tables hold numbers that are not finite, or larger than any calibration has")
        if not len(self.matrices) or self.bands.max() >= len(self.matrices):
            raise InputError(f"the codec tables name a band that is not among their {len(self.matrices)}")
        if abs(self.exponent) > _MOST_SCALE or abs(self.middle) > _MOST_STEP:
            raise InputError("the codec tables have a scale or a step that no calibration has")
        if (
            self.lowest < LOWEST_CLASS
            or self.lowest + len(self.groupings) != TOP_CLASS + 1
            or self.lowest > TOP_CLASS - 1
        ):
            raise InputError("the codec tables lack classes")
        if (self.groupings >= len(GROUPS)).any() or self.groupings[-2:].any():
            raise InputError("the codec tables group values in a way that is not known")
        for grouping, lengths in zip(self.groupings, self.lengths, strict=True):
            reach, values = GROUPS[grouping]
            used = (2 * reach + 1) ** values
            coded = np.append(lengths[:used], lengths[-1])
            complete = int((1 << LONGEST_CODE - coded.astype(np.int64)).sum()) == 1 << LONGEST_CODE
            if not coded.all() or lengths[used:-1].any() or not complete:
                raise InputError("the codec tables hold code lengths that are no complete prefix code")


def scale_of(scales: Array, exponent: int) -> Array:
    """float32[...]: the mean magnitudes that `scales` (uint8[...]) stand for."""
    means: Array = np.exp2((scales + np.float32(exponent)) / 8)
    return means


def step_of(sixteenths: int) -> float:
    """The step of so many sixteenths of an octave, a float32."""
    return float(np.float32(2.0 ** (sixteenths / 16)))


def sent_with(tables: KltTables) -> str:
    """The codec with these tables as the wire calls it: ``klt:`` and the first 16 digits of their hash."""
    return f"klt:{tables.hash[:16]}"


def axes_of(shape: tuple[int, ...]) -> tuple[int, tuple[int, ...]]:
    """(channels, the axes that the cosine transform goes over: (height, width), (tokens,) or none) of one example."""
    return (shape[-1], shape[:-1]) if len(shape) == 2 else (shape[0], shape[1:])


def check_shape(shape: tuple[int, ...]) -> tuple[int, int]:
    """(channels, frequencies) of one example's tensor; InputError if there are no tables for such."""
    if not 1 <= len(shape) <= _MOST_RANK or not all(1 <= n <= _LONGEST for n in shape):
        raise InputError(
            f"no codec tables are for one example of shape {shape}: they are for (channels, height, width), (tokens, "
            f"features) and (features,), sides 1 to {_LONGEST}"
        )
    channels, positions = axes_of(shape)
    if channels**2 + prod(shape) > MAX_TABLES_BYTES - (1 << 18):
        raise InputError(f"codec tables for one example of shape {shape} would have over {MAX_TABLES_BYTES >> 20} MiB")
    return channels, prod(positions)
