"""The messages between a server and a process that computes for it, over a pipe: a header, then the arrays' bytes.

Both ends are ours, and of one version: nothing here is checked as what comes over a network is.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Mapping, Sequence

import msgspec
import numpy as np

from splitpoint.tensors import Array, TensorSpec

_LENGTH = struct.Struct("<I")


class PipeMessage(msgspec.Struct):
    """`arrays` are dtype and shape of what follows it. `error` is "" or the kind of error that `text` says."""

    arrays: tuple[tuple[str, tuple[int, ...]], ...] = ()
    error: str = ""
    text: str = ""
    nbytes: int = 0


class Build(msgspec.Struct):
    """What to compile, and with what: the first message. The proto and every blob follow it as arrays of bytes."""

    engine: str
    device: str
    threads: int
    work_bytes: int
    fingerprint: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    hashes: tuple[str, ...]


def write(fd: int, header: msgspec.Struct, arrays: Sequence[Array | memoryview] = ()) -> None:
    """OSError if nobody reads any more."""
    encoded = msgspec.msgpack.encode(header)
    _write(fd, memoryview(_LENGTH.pack(len(encoded)) + encoded))
    for array in arrays:
        _write(fd, array if isinstance(array, memoryview) else _raw(array))


def read(fd: int) -> PipeMessage:
    """The next message, without its arrays. EOFError when there is none."""
    return msgspec.msgpack.decode(read_header(fd), type=PipeMessage)


def read_header(fd: int) -> bytearray:
    (length,) = _LENGTH.unpack(_read(fd, bytearray(_LENGTH.size)))
    return _read(fd, bytearray(length))


def read_arrays(fd: int, kinds: Sequence[tuple[str, tuple[int, ...]]]) -> list[Array]:
    """The arrays that follow a header, as it names them."""
    arrays = []
    for dtype, shape in kinds:
        array = np.empty(shape, dtype)
        _read_into(fd, _raw(array))
        arrays.append(array)
    return arrays


def kinds(arrays: Sequence[Array]) -> tuple[tuple[str, tuple[int, ...]], ...]:
    """What `PipeMessage.arrays` says of these."""
    return tuple((a.dtype.name, a.shape) for a in arrays)


def listed(specs: Sequence[TensorSpec], arrays: Mapping[str, Array]) -> list[Array]:
    """Those of `specs`, in order and contiguous."""
    return [np.ascontiguousarray(arrays[t.name]).reshape(arrays[t.name].shape) for t in specs]


def _raw(array: Array) -> memoryview:
    return array.reshape(-1).view(np.uint8).data


def _write(fd: int, data: memoryview) -> None:
    while data:
        data = data[os.write(fd, data) :]


def _read(fd: int, buffer: bytearray) -> bytearray:
    _read_into(fd, memoryview(buffer))
    return buffer


def _read_into(fd: int, rest: memoryview) -> None:
    while rest:
        got = os.readv(fd, [rest])
        if not got:
            raise EOFError
        rest = rest[got:]
