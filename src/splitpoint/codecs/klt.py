"""klt:LEVEL: a transform codec for the features at a cut, calibrated on what this tensor is like, never trained.

    tables = learn(features of some inputs)                # once, anywhere
    klt = Klt("klt:40", tables)                            # on both sides
    data = klt.encode(features)
    close = klt.decode(data, spec_of("x", features))

Each example's mean is taken out, cosines go over its positions, a rotation (Karhunen & Loève's) over its channels for
each band of frequencies, one step quantises all coefficients, and prefix codes say the numbers (docs/codecs.md).
"""

from __future__ import annotations

import itertools
import struct
from collections.abc import Sequence
from functools import cached_property
from math import ceil

import numpy as np

from splitpoint.codecs import FLOATS, Codec, at_most, checked, dims, takes
from splitpoint.codecs.klt_learn import learn
from splitpoint.codecs.klt_symbols import UNLIKE, Codes, outside_of
from splitpoint.codecs.klt_tables import KltTables, sent_with, step_of
from splitpoint.codecs.klt_transform import Transform
from splitpoint.errors import InputError, UsageError
from splitpoint.tensors import Array, TensorSpec

__all__ = ["LEVELS", "Klt", "KltTables", "learn", "outside_of_range"]

#: Qualities, as JPEG has them: higher is finer. A level is a sixteenth of an octave of the step.
LEVELS = range(1, 101)
MIDDLE_LEVEL = 50
#: The farthest that a step may be from the tables' own, in sixteenths of an octave.
_FARTHEST = 256
_OFFSETS = np.arange(-_FARTHEST, _FARTHEST + 1, 8)
#: A budget is used where so much of it is.
_FULL = 0.98
#: Coefficients that are decoded at a time.
_CHUNK = 1 << 17
_STEP = struct.Struct("<h")
_LENGTH = "<u4"


class Klt(Codec):
    """One quality of one tensor's tables. `tables` decode every quality."""

    sized = False
    stepped = True
    #: What `fit` never goes below.
    coarsest = LEVELS[0]

    def __init__(self, name: str, tables: KltTables) -> None:
        kind, _, level = name.partition(":")
        if kind != "klt" or level not in map(str, LEVELS):
            raise UsageError(
                f"the codec klt needs a level from {LEVELS[0]} to {LEVELS[-1]}, as in klt:40: {name[:40]!r} came"
            )
        self.name = name
        self.tables = tables
        self._level = int(level)
        self._transform = Transform.of(tables)
        self._codes = Codes(tables)
        order, channels = self._codes.order, tables.channels
        rank = np.argsort(self._transform.by_band)
        #: Where the sorted coefficients are among those that the transform gives.
        self._places = rank[order // channels] * channels + order % channels
        #: Where what the transform gives is among the sorted ones.
        self._sorted = np.argsort(self._places)

    @property
    def sent_as(self) -> str:
        return sent_with(self.tables)

    @property
    def step(self) -> float:
        """The step of this level, in units of the coefficients."""
        return step_of(self.tables.middle + MIDDLE_LEVEL - self._level)

    def accepts(self, spec: TensorSpec) -> bool:
        return spec.dtype in FLOATS and tuple(spec.shape[1:]) == self.tables.shape and len(spec.shape) > 1

    def nbytes(self, spec: TensorSpec) -> int:
        """What such tensors took when the tables were made, about."""
        return dims(spec)[0] * self._codes.estimate(self.tables.middle + MIDDLE_LEVEL - self._level)

    def most(self, spec: TensorSpec) -> int:
        # An encoder gives up where a value would take over four bytes.
        return dims(spec)[0] * self._most()

    def encode(self, array: Array) -> Array:
        data = self._joined(self._coefficients(array), MIDDLE_LEVEL - self._level)
        if data.size > len(array) * self._most():
            raise InputError(UNLIKE)
        return data

    def encode_within(self, array: Array, max_bytes: int) -> tuple[Array, float]:
        """(at most `max_bytes` bytes, their step). The step is this level's where that fits, else an estimate's; what
        comes out too large is encoded again, coarser. InputError if not even the coarsest step fits.
        """
        data, offset = self._within(array, max_bytes, _FARTHEST)
        if data.size > max_bytes:
            raise InputError(f"{max_bytes} bytes are too few: at its coarsest step {self.name} takes {data.size}")
        return data, step_of(self.tables.middle + offset)

    def fit(self, array: Array, max_bytes: int) -> tuple[Array, str]:
        data, offset = self._within(array, max_bytes, MIDDLE_LEVEL - min(self.coarsest, self._level))
        if data.size > len(array) * self._most():
            raise InputError(UNLIKE)
        return data, f"klt:{MIDDLE_LEVEL - offset}"

    def _within(self, array: Array, max_bytes: int, farthest: int) -> tuple[Array, int]:
        """(the bytes, their offset from the middle step): at most `max_bytes`, unless `farthest` takes more."""
        coefficients = self._coefficients(array)
        finest = MIDDLE_LEVEL - self._level
        if not coefficients:
            return np.empty(0, np.uint8), finest
        max_bytes = min(max_bytes, len(array) * self._most())
        data = self._joined(coefficients, offset := self._offset(max_bytes / len(coefficients), finest, farthest))
        if data.size < _FULL * max_bytes and offset > finest:
            # This tensor takes less than usual: finer by as much.
            finer = self._offset(self._usual(offset) * _FULL * max_bytes / data.size, finest, farthest)
            if finer < offset:
                data = self._joined(coefficients, offset := finer)
        while data.size > max_bytes and offset < farthest:
            coarser = self._offset(self._usual(offset) * _FULL * max_bytes / data.size, finest, farthest)
            data = self._joined(coefficients, offset := min(farthest, max(offset + 1, coarser)))
        return data, offset

    def decode(self, data: Array, spec: TensorSpec) -> Array:
        return self.decode_many([data], spec)

    def decode_many(self, data: Sequence[Array], spec: TensorSpec) -> Array:
        """The tensors of `data`, each one of `spec`, one after the other along the batch axis."""
        takes(self, spec)
        payloads = [part for one in data for part in self._parts(one, spec)]
        out = np.empty((len(payloads), *self.tables.shape), spec.dtype)
        # As many at a time as stay in a core's own cache.
        some = max(1, _CHUNK // self._places.size)
        with np.errstate(over="ignore", invalid="ignore"):
            for at in range(0, len(payloads), some):
                out[at : at + some] = self._transform.inverse(self._unpacked(payloads[at : at + some], spec))
        if not np.isfinite(out).all():
            raise InputError(f"{spec} came as bytes of klt whose values are too large for its dtype")
        return out

    def _unpacked(self, payloads: Sequence[bytes], spec: TensorSpec) -> Array:
        """The coefficients in `payloads`, float32[frequencies, batch, channels]; InputError for broken bytes."""
        channels = self.tables.channels
        coefficients = np.empty((self._places.size // channels, len(payloads), channels), np.float32)
        values = np.empty(self._places.size, np.float32)
        for k, payload in enumerate(payloads):
            try:
                (offset,) = _STEP.unpack_from(payload)
                if abs(offset) > _FARTHEST:
                    raise InputError("its step is none that an encoder chooses")
                self._codes.read(payload[_STEP.size :], self.tables.middle + offset, values)
            except (InputError, struct.error) as exc:
                raise InputError(f"{spec} came as broken bytes of klt: {exc}") from exc
            values *= np.float32(step_of(self.tables.middle + offset))
            coefficients[:, k] = values.take(self._sorted).reshape(-1, channels)
        return coefficients

    def _coefficients(self, array: Array) -> list[Array]:
        """float32[coefficients] of each example, sorted. InputError for what is not finite."""
        batch = checked(self, array).astype(np.float32, copy=False)
        if not len(batch):
            return []
        with np.errstate(over="ignore", invalid="ignore"):
            coefficients = self._transform.forward(batch)
        if not np.isfinite(coefficients).all():
            raise InputError(
                f"the tensor holds NaN, infinite or too large values, which {self.name} cannot express: send it raw"
            )
        return [coefficients[:, k].take(self._places) for k in range(len(batch))]

    def _joined(self, coefficients: Sequence[Array], offset: int) -> Array:
        """The examples' bytes at `offset` from the middle step; before them the length of each but the last."""
        parts = [self._packed(values, offset) for values in coefficients]
        lengths = np.array([len(p) for p in parts[:-1]], _LENGTH).tobytes()
        return np.frombuffer(b"".join([lengths, *parts]), np.uint8)

    def _packed(self, coefficients: Array, offset: int) -> bytes:
        step = self.tables.middle + offset
        with np.errstate(over="ignore"):
            values = coefficients * np.float32(1 / step_of(step))
        np.rint(values, out=values)
        return _STEP.pack(offset) + self._codes.write(values, step)

    def _parts(self, data: Array, spec: TensorSpec) -> list[bytes]:
        """Each example's bytes; InputError unless they are as many as `spec` says."""
        packed, count = at_most(data, self, spec), dims(spec)[0]
        at = max(0, count - 1) * np.dtype(_LENGTH).itemsize
        if at > len(packed) or (not count and packed):
            raise InputError(f"{spec} came as {len(packed)} bytes of klt, which is not what it takes")
        ends = at + np.cumsum(np.frombuffer(packed, _LENGTH, max(0, count - 1)), dtype=np.int64)
        places = [at, *ends.tolist(), len(packed)]
        if any(b < a for a, b in itertools.pairwise(places)):
            raise InputError(f"{spec} came as {len(packed)} bytes of klt, shorter than they say")
        return [packed[a:b] for a, b in itertools.pairwise(places)][:count]

    def _most(self) -> int:
        return 1024 + 4 * self._places.size

    @cached_property
    def _curve(self) -> Array:
        """Bytes that an example usually takes at each of the offsets `_OFFSETS`; they only fall."""
        return np.minimum.accumulate([self._codes.estimate(self.tables.middle + o) for o in _OFFSETS])

    def _usual(self, offset: int) -> float:
        return float(np.interp(offset, _OFFSETS, self._curve))

    def _offset(self, nbytes: float, finest: int, farthest: int) -> int:
        """The finest offset from `finest` to `farthest` that usually takes no more than `nbytes`."""
        offset = float(np.interp(nbytes, self._curve[::-1], _OFFSETS[::-1]))
        return min(farthest, max(finest, ceil(offset)))


def outside_of_range(data: Array, batch: int = 1) -> int:
    """How many coefficients of an encoding of klt were far outside, 32 times their mean, of what was calibrated.

    None are, for data like the calibration's. Some in one input after the other: the calibration no longer fits.
    """
    packed = data.tobytes()
    at = (batch - 1) * np.dtype(_LENGTH).itemsize
    total = 0
    for length in [*np.frombuffer(packed, _LENGTH, batch - 1).tolist(), len(packed)]:
        total += outside_of(packed[at + _STEP.size :])
        at += length
    return total
