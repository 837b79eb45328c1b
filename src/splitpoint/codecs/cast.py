"""raw and fp16: a tensor as it is, or in half precision."""

from __future__ import annotations

import numpy as np

from splitpoint.codecs import Codec, aligned, checked, dims, exactly
from splitpoint.errors import InputError
from splitpoint.tensors import ITEM_SIZES, Array, TensorSpec


class Raw(Codec):
    """Little-endian values in C order: what a tensor without a codec is on the wire."""

    exact = True

    def __init__(self, name: str = "raw") -> None:
        self.name = name

    def accepts(self, spec: TensorSpec) -> bool:
        return spec.dtype in ITEM_SIZES

    def nbytes(self, spec: TensorSpec) -> int:
        return spec.nbytes

    def encode(self, array: Array) -> Array:
        return checked(self, array).reshape(-1).view(np.uint8)

    def decode(self, data: Array, spec: TensorSpec) -> Array:
        data = exactly(data, self, spec)
        if spec.dtype == "bool" and data.size and data.max() > 1:
            raise InputError(f"{spec} came with a byte that is neither 0 nor 1")
        return aligned(data, spec.dtype).reshape(dims(spec))


class Half(Codec):
    """IEEE half precision, rounded to the nearest. NaN and infinities pass; what would become infinite is refused."""

    def __init__(self, name: str = "fp16") -> None:
        self.name = name

    def nbytes(self, spec: TensorSpec) -> int:
        return 2 * spec.elements

    def encode(self, array: Array) -> Array:
        array = checked(self, array)
        if array.dtype == np.float16:
            return array.reshape(-1).view(np.uint8)
        largest = max(-float(array.min()), float(array.max())) if array.size else 0.0
        plain = largest < _TOO_LARGE  # not so with a NaN in it
        if not plain and bool((np.isfinite(array) & (np.abs(array) >= _TOO_LARGE)).any()):
            raise InputError(
                f"a value beyond 65504, the largest of half precision: codec {self.name} cannot express it; send it raw"
            )
        if plain and array.dtype == np.float32:
            return to_half(array.reshape(-1)).view(np.uint8)
        return array.astype(np.float16).reshape(-1).view(np.uint8)

    def decode(self, data: Array, spec: TensorSpec) -> Array:
        half = aligned(exactly(data, self, spec), "float16")
        values = from_half(half) if spec.dtype == "float32" else half.astype(spec.dtype, copy=False)
        return values.reshape(dims(spec))


#: Halfway between the largest half and the next power of two: the smallest that rounds to infinity.
_TOO_LARGE = 65520.0


# --- float32 ↔ half precision at memory speed -------------------------------------------------------------------------
# numpy converts one value after the other, at half the speed (docs/design/codecs.md). These are whole-array steps on
# the bits, a piece at a time so that it stays in the processor's cache. Multiplying by 2^-112 makes a float's exponent
# a half's; what is then too small for a half's normal range is rounded by the multiplication.

#: Values a piece: three buffers of 4 bytes each fit the second-level cache of a small processor.
_PIECE = 16384
_DOWN, _UP = np.float32(2.0**-112), np.float32(2.0**112)
#: All bits of a float32 but those between its sign and the exponent of a half that is 13 bits further up.
_NO_CARRY = np.int32(~0x70000000)
#: What a half's infinity becomes when it is read as a number, and NaNs more than that.
_INFINITE = 65536.0


def to_half(values: Array) -> Array:
    """float16[n] of `values` (float32[n], contiguous, below 65520 in magnitude), rounded to the nearest, ties to even.

    Below 2^-14, where halves lose digits, a tie may go the other way: by 2^-24 at the most.
    """
    halves = np.empty(values.size, np.uint16)
    bits, sign = np.empty(_PIECE, np.uint32), np.empty(_PIECE, np.uint32)
    for start in range(0, values.size, _PIECE):
        piece = values[start : start + _PIECE]
        b, s = bits[: piece.size], sign[: piece.size]
        np.multiply(piece, _DOWN, out=b.view(np.float32))
        np.right_shift(b, 16, out=s)
        np.bitwise_and(s, 0x8000, out=s)
        np.bitwise_and(b, 0x7FFFFFFF, out=b)
        odd = (b >> 13) & 1
        odd += 0xFFF
        b += odd
        b >>= 13
        b |= s
        halves[start : start + piece.size] = b
    return halves.view(np.float16)


def from_half(values: Array) -> Array:
    """float32[n] of `values` (float16[n], contiguous), exactly."""
    numbers = np.empty(values.size, np.float32)
    bits, halves = numbers.view(np.int32), values.view(np.int16)
    for start in range(0, values.size, _PIECE):
        b, floats = bits[start : start + _PIECE], numbers[start : start + _PIECE]
        np.copyto(b, halves[start : start + _PIECE])  # signed: the sign fills the upper half
        np.left_shift(b, 13, out=b)
        np.bitwise_and(b, _NO_CARRY, out=b)
        np.multiply(floats, _UP, out=floats)
    if numbers.size and max(-numbers.min(), numbers.max()) >= _INFINITE:
        return values.astype(np.float32)
    return numbers
