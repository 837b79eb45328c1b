"""int8 and int4: a channel's values as steps between its least and its largest.

``value ≈ low + step · scale`` with 256 (16) steps a channel: no value moves by more than half a scale, a constant
channel is exact, and so are the zeros of a channel that begins at zero (behind a ReLU). What cannot be expressed so,
NaN and infinities, is refused: an answer computed without them would be wrong and not say so.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import prod

import numpy as np

from splitpoint.codecs import Codec, aligned, checked, dims, exactly
from splitpoint.errors import InputError
from splitpoint.tensors import Array, TensorSpec

#: Fewer values than this share the numbers of a larger channel: two float32 for each would outweigh what they save.
_LEAST = 32
#: Values handled at a time: what is computed on stays in a core's own cache.
_CHUNK = 1 << 15


class Affine(Codec):
    """Per-channel affine quantisation to 8 or 4 bits; see docs/codecs.md for the bytes."""

    def __init__(self, name: str = "int8") -> None:
        self.name = name
        self._bits = 4 if name.startswith("int4") else 8
        self._steps = (1 << self._bits) - 1

    def nbytes(self, spec: TensorSpec) -> int:
        _, table = channels(spec)
        return 2 * prod(table) * _number(spec.dtype).itemsize + (spec.elements * self._bits + 7) // 8

    def encode(self, array: Array) -> Array:
        array = checked(self, array)
        spec = TensorSpec("tensor", array.dtype.name, array.shape)
        out = np.empty(self.nbytes(spec), np.uint8)
        if not array.size:
            return out
        layout, table = channels(spec)
        values, number = array.reshape(layout), _number(spec.dtype)
        low, scale, packed = self._parts(out, prod(table), number)
        low, scale = low.reshape(table), scale.reshape(table)
        with np.errstate(over="ignore", invalid="ignore"):
            np.copyto(low, values.min(axis=1, keepdims=True))
            np.divide(values.max(axis=1, keepdims=True) - low, self._steps, out=scale)
        # Below the smallest normal number a step has no precision left, and nothing to tell apart.
        scale[scale < np.finfo(number).tiny] = 0
        if not self._expressible(low, scale, spec.dtype):
            raise InputError(
                f"{spec.type} holds NaN, infinite or too large values, which codec {self.name} cannot express: "
                "send it raw"
            )
        steps = np.zeros(array.size + array.size % 2, np.uint8) if self._bits == 4 else packed
        _quantise(values, low, scale, steps[: array.size].reshape(layout))
        if self._bits == 4:
            _pack(steps, packed)
        return out

    def decode(self, data: Array, spec: TensorSpec) -> Array:
        data = exactly(data, self, spec)
        if not spec.elements:
            return np.empty(dims(spec), spec.dtype)
        layout, table = channels(spec)
        low, scale, packed = self._parts(data, prod(table), _number(spec.dtype))
        if not (scale >= 0).all() or not self._expressible(low, scale, spec.dtype):
            raise InputError(f"{spec} came with the scale of a channel that no {self.name} tensor has")
        steps = packed if self._bits == 8 else _unpack(packed)
        if steps.size > spec.elements and steps[-1]:
            raise InputError(f"{spec} came with bits behind its last value")
        out = np.empty(layout, spec.dtype)
        _restore(steps[: spec.elements].reshape(layout), low.reshape(table), scale.reshape(table), out)
        return out.reshape(dims(spec))

    def _parts(self, data: Array, count: int, number: np.dtype[np.floating]) -> tuple[Array, Array, Array]:
        """The three parts of an encoding: a low a channel, a scale a channel, the steps."""
        size = count * number.itemsize
        low, scale = aligned(data[:size], number.str), aligned(data[size : 2 * size], number.str)
        return low, scale, data[2 * size :]

    def _expressible(self, low: Array, scale: Array, dtype: str) -> bool:
        """Whether the first and the last step of every channel are finite numbers of `dtype`."""
        with np.errstate(over="ignore", invalid="ignore"):
            high = (low + scale * low.dtype.type(self._steps)).astype(dtype)
            return bool(np.isfinite(low.astype(dtype)).all() and np.isfinite(high).all())


def _number(dtype: str) -> np.dtype[np.floating]:
    """What low and scale are, and what is computed in."""
    return np.dtype("<f8" if dtype == "float64" else "<f4")


def channels(spec: TensorSpec) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """How the values are looked at, and the shape of one number a channel beside it; a channel runs along axis 1.

    Four dimensions or more are ``[batch, channel, …]``: a channel of each example has numbers of its own, so that
    an example's answer does not depend on what else is in its batch. Three are ``[batch, token, feature]``: one for
    each feature. Where such a channel has under 32 values, and for two dimensions, it is a whole example; where that
    is short, too, the whole tensor.

    >>> channels(TensorSpec("x", "float32", (1, 64, 28, 28)))
    ((64, 784), (64, 1))
    >>> channels(TensorSpec("x", "float32", (1, 197, 768)))
    ((1, 197, 768), (1, 1, 768))
    >>> channels(TensorSpec("x", "float32", (1, 1280, 1, 1)))
    ((1, 1280), (1, 1))
    """
    count, shape = spec.elements, dims(spec)
    if not count:
        return (0, 1), (0, 1)
    if len(shape) == 3 and shape[1] >= _LEAST:
        return shape, (shape[0], 1, shape[2])
    for axes in (2, 1) if len(shape) > 3 else (1,):
        groups = prod(shape[:axes])
        if len(shape) > axes and count // groups >= _LEAST:
            return (groups, count // groups), (groups, 1)
    return (1, count), (1, 1)


def _blocks(layout: tuple[int, ...]) -> Iterator[tuple[slice, slice]]:
    """Parts of the first two axes with about `_CHUNK` values each, which cover `layout`."""
    row = prod(layout[2:])
    tall = max(1, min(layout[1], _CHUNK // row))
    wide = max(1, _CHUNK // (row * layout[1])) if tall == layout[1] else 1
    for i in range(0, layout[0], wide):
        for j in range(0, layout[1], tall):
            yield slice(i, i + wide), slice(j, j + tall)


def _quantise(values: Array, low: Array, scale: Array, steps: Array) -> None:
    """Fill `steps` with the step nearest to each of `values`."""
    inverse = np.divide(1, scale, out=np.zeros_like(scale), where=scale > 0)
    scratch: Array | None = None
    for i, j in _blocks(values.shape):
        part = values[i, j]
        if scratch is None or scratch.shape != part.shape:
            scratch = np.empty(part.shape, scale.dtype)
        np.subtract(part, low[i], out=scratch)
        np.multiply(scratch, inverse[i], out=scratch)
        # Nothing is below 0 here, so half a step more and cutting off is rounding, at the price of an addition.
        np.add(scratch, 0.5, out=scratch)
        np.copyto(steps[i, j], scratch, casting="unsafe")


def _restore(steps: Array, low: Array, scale: Array, out: Array) -> None:
    """Fill `out` with the values that `steps` stand for."""
    for i, j in _blocks(steps.shape):
        part = out[i, j]
        if part.dtype == scale.dtype:
            np.multiply(steps[i, j], scale[i], out=part, dtype=scale.dtype)
            np.add(part, low[i], out=part)
        else:
            part[...] = steps[i, j] * scale[i] + low[i]


def _pack(steps: Array, packed: Array) -> None:
    """Two steps a byte, the first in the low half. `steps` has an even number of them."""
    pairs = steps.view("<u2")
    for k in range(0, pairs.size, _CHUNK):
        two = pairs[k : k + _CHUNK]
        np.copyto(packed[k : k + _CHUNK], two | (two >> 4), casting="unsafe")


def _unpack(packed: Array) -> Array:
    steps = np.empty(2 * packed.size, np.uint8)
    pairs = steps.view("<u2")
    for k in range(0, packed.size, _CHUNK):
        two = packed[k : k + _CHUNK].astype("<u2")
        np.bitwise_and(two | (two << 4), 0x0F0F, out=pairs[k : k + _CHUNK])
    return steps
