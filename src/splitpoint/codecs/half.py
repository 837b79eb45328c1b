"""float32 ↔ IEEE half precision at memory speed.

numpy converts one value after the other (measured, GB of float32 a second: 1.3 down and 2.1 up; half of that on a busy
core). The same in whole-array steps on the bits, a piece at a time so that it stays in the processor's cache: 2.2 and
4 to 5. Multiplying by 2^-112 makes a float's exponent a half's; what is then too small for a half's normal range is
rounded by the multiplication.
"""

from __future__ import annotations

import numpy as np

from splitpoint.tensors import Array

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
