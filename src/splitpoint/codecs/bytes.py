"""What all codecs check: the tensor that goes in, the bytes that come."""

from __future__ import annotations

import numpy as np

from splitpoint.codecs import Codec
from splitpoint.errors import InputError
from splitpoint.tensors import Array, TensorSpec, spec_of

#: The dtypes that lossy codecs take. Integers are ids, counts or quantised already: their bits all mean something.
FLOATS = frozenset({"float16", "float32", "float64"})


def checked(codec: Codec, array: Array) -> Array:
    """`array`, C-contiguous and in this machine's byte order, if `codec` takes it; InputError otherwise."""
    takes(codec, spec_of("tensor", array))
    return np.ascontiguousarray(array, array.dtype.newbyteorder("=")).reshape(array.shape)


def takes(codec: Codec, spec: TensorSpec) -> None:
    """InputError unless `codec` takes tensors like `spec`."""
    if not codec.accepts(spec):
        raise InputError(f"codec {codec.name} does not take {spec.type}: send it raw")


def dims(spec: TensorSpec) -> tuple[int, ...]:
    """The shape of a bound spec."""
    return tuple(int(n) for n in spec.shape)


def exactly(data: Array, codec: Codec, spec: TensorSpec) -> Array:
    """`data`, contiguous, if it is as long as `codec`, a sized one, says of `spec`; InputError otherwise."""
    takes(codec, spec)
    nbytes = codec.nbytes(spec)
    if data.dtype != np.uint8 or data.ndim != 1 or data.size != nbytes:
        raise InputError(f"{spec} takes {nbytes} bytes of {codec.name}, but {data.nbytes} came")
    return np.ascontiguousarray(data)


def at_most(data: Array, codec: Codec, spec: TensorSpec) -> bytes:
    """`data` if it is no longer than `codec`, one that compresses, allows for `spec`; InputError otherwise."""
    takes(codec, spec)
    if data.size > codec.most(spec):
        raise InputError(f"{spec} takes at most {codec.most(spec)} bytes of {codec.name}, but {data.size} came")
    return data.tobytes()


def aligned(data: Array, dtype: str) -> Array:
    """`data` (uint8[n]) as numbers of `dtype`: a view, or a copy where the bytes do not lie as the CPU wants them."""
    view = data.view(dtype)
    return view if view.flags.aligned else view.copy()
