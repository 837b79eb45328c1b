"""raw and fp16: a tensor as it is, or in half precision."""

from __future__ import annotations

import numpy as np

from splitpoint.codecs.bytes import FLOATS, aligned, checked, dims, exactly
from splitpoint.codecs.half import from_half, to_half
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
        data = exactly(data, self, spec)
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
        if array.dtype == np.float16:
            return array.reshape(-1).view(np.uint8)
        plain = _range_of(array) < _TOO_LARGE  # not so with a NaN in it
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


def _range_of(array: Array) -> float:
    """The largest magnitude; NaN if there is one."""
    return max(-float(array.min()), float(array.max())) if array.size else 0.0


#: Halfway between the largest half and the next power of two: the smallest that rounds to infinity.
_TOO_LARGE = 65520.0
