"""raw and fp16: a tensor as it is, or in half precision."""

from __future__ import annotations

import numpy as np

from splitpoint.codecs.bytes import FLOATS, aligned, checked, dims, exactly
from splitpoint.errors import InputError
from splitpoint.tensors import ITEM_SIZES, Array, TensorSpec


class Raw:
    """Little-endian values in C order: what a tensor without a codec is on the wire."""

    exact = True
    sized = True

    def __init__(self, name: str = "raw") -> None:
        self.name = name

    def accepts(self, spec: TensorSpec) -> bool:
        return spec.dtype in ITEM_SIZES

    def nbytes(self, spec: TensorSpec) -> int:
        return spec.nbytes

    def most(self, spec: TensorSpec) -> int:
        return spec.nbytes

    def encode(self, array: Array) -> Array:
        return checked(self, array).reshape(-1).view(np.uint8)

    def decode(self, data: Array, spec: TensorSpec) -> Array:
        data = exactly(data, spec.nbytes, self, spec)
        if spec.dtype == "bool" and data.size and data.max() > 1:
            raise InputError(f"{spec} came with a byte that is neither 0 nor 1")
        return aligned(data, spec.dtype).reshape(dims(spec))


class Half:
    """IEEE half precision, rounded to the nearest. NaN and infinities pass; what would become infinite is refused."""

    exact = False
    sized = True

    def __init__(self, name: str = "fp16") -> None:
        self.name = name

    def accepts(self, spec: TensorSpec) -> bool:
        return spec.dtype in FLOATS

    def nbytes(self, spec: TensorSpec) -> int:
        return 2 * spec.elements

    def most(self, spec: TensorSpec) -> int:
        return self.nbytes(spec)

    def encode(self, array: Array) -> Array:
        array = checked(self, array)
        with np.errstate(over="ignore"):
            half = array.astype(np.float16, copy=False)
        if half is not array and _overflows(array):
            raise InputError(
                f"a value beyond 65504, the largest of half precision: codec {self.name} cannot express it; send it raw"
            )
        return half.reshape(-1).view(np.uint8)

    def decode(self, data: Array, spec: TensorSpec) -> Array:
        half = aligned(exactly(data, self.nbytes(spec), self, spec), "float16")
        return half.astype(spec.dtype, copy=False).reshape(dims(spec))


def _overflows(array: Array) -> bool:
    """Whether a finite value rounds to an infinite half. Two passes at memory speed; a third where they find one."""
    if not array.size or max(-float(array.min()), float(array.max())) < _TOO_LARGE:
        return False
    return bool((np.isfinite(array) & (np.abs(array) >= _TOO_LARGE)).any())


#: Halfway between the largest half and the next power of two: the smallest that rounds to infinity.
_TOO_LARGE = 65520.0
