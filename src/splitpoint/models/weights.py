"""Weight blobs: raw little-endian bytes of one tensor, addressed by their SHA-256.

A model is a graph without weights plus blobs: a device fetches only those that it does not have.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol
from weakref import WeakValueDictionary

import numpy as np

from splitpoint.errors import ChangedError, ModelError, StorageError
from splitpoint.files import named
from splitpoint.models.dataflow import Proto, onnx, ort, reads
from splitpoint.models.soundness import blob_hash, nbytes
from splitpoint.tensors import ITEM_SIZES, Array


@dataclass(frozen=True, slots=True)
class Blob:
    """The bytes of one weight tensor: `hash` is SHA-256 in hex."""

    hash: str
    nbytes: int


class Weights(Protocol):
    """Where blobs come from.

    >>> weights = ModelWeights()
    >>> digest = weights.add(b"four")
    >>> bytes(weights.open(digest))
    b'four'
    """

    def open(self, hash: str) -> memoryview:
        """The blob's bytes, read-only, which nobody changes as long as they are held. StorageError if it is not there,
        ChangedError if its file no longer has it."""


class ModelWeights:
    """A model's blobs by hash: those inside its file in memory, those beside it read from there whenever asked for.

    No file is mapped: one that is cut short would end the process (SIGBUS), and one that is written to would change
    weights under their hash. What is read is a copy, and hashed again. `open` raises ChangedError where it no longer
    fits; StorageError if the blob is not here at all.
    """

    def __init__(self) -> None:
        self._blobs: dict[str, memoryview] = {}
        self._parts: dict[str, Part] = {}
        self._copies = Copies(_KEPT_NBYTES)

    def add(self, data: bytes | memoryview) -> str:
        digest = hashlib.sha256(data).hexdigest()
        self._blobs.setdefault(digest, memoryview(data))
        return digest

    def add_part(self, part: Part) -> str:
        """Adds what `part` of a file holds now, without keeping it in memory."""
        digest = part.digest()
        self._parts.setdefault(digest, part)
        return digest

    def open(self, hash: str) -> memoryview:
        if (blob := self._blobs.get(hash)) is not None:
            return blob
        if (part := self._parts.get(hash)) is None:
            raise StorageError(f"weight blob {hash[:12]}… is not here")
        return self._copies.open(hash, lambda: part)


#: Of a model's files, how many stay open: one that is replaced or deleted (not written to) is then still there for us.
#: Some exporters write a file for every weight.
_MOST_OPEN = 16
#: Read from files and kept for who asks next: all of a small model, so that its profile need not hash it each time.
_KEPT_NBYTES = 64 << 20
#: How much is read at once, and hashed while it is in the processor's cache.
_PIECE = 1 << 20


class DataFile:
    """A file that is read now and then. It stays open if `stays`, else it is opened each time.

    OSError if it cannot be opened, or is no regular file.
    """

    def __init__(self, path: Path, *, stays: bool) -> None:
        self.path = path
        fd = self._open()
        self.nbytes = os.fstat(fd).st_size
        self._fd = fd if stays else -1
        if stays:
            weakref.finalize(self, os.close, fd)
        else:
            os.close(fd)

    def _open(self) -> int:
        fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a FIFO would wait for a writer
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise OSError(errno.EINVAL, "it is no regular file")
        return fd

    @contextmanager
    def opened(self) -> Iterator[int]:
        """A descriptor to read it with."""
        if self._fd >= 0:
            yield self._fd
            return
        fd = self._open()
        try:
            yield fd
        finally:
            os.close(fd)


class Part(NamedTuple):
    """`nbytes` of a file, from `offset` on."""

    file: DataFile
    offset: int
    nbytes: int

    def digest(self) -> str:
        """SHA-256 of what it holds now, in hex. ModelError if it cannot be read."""
        try:
            return self._scan(None)
        except OSError as exc:
            raise ModelError(f"{self.file.path} cannot be read: {exc.strerror or exc}") from exc

    def read(self, hash: str) -> Array:
        """A copy of it, read-only, if it still has that hash. ChangedError if not."""
        data, path = np.empty(self.nbytes, np.uint8), self.file.path
        try:
            digest, why = self._scan(data.data), "other bytes are in it"
        except OSError as exc:
            digest, why = "", exc.strerror or str(exc)
        if digest != hash:
            raise ChangedError(f"{path} has changed since it was loaded ({why}): start again with what it is now", path)
        data.flags.writeable = False
        return data

    def _scan(self, into: memoryview | None) -> str:
        """Reads all of it, `into` memory if that is given, and returns its SHA-256. OSError."""
        digest, scratch = hashlib.sha256(), memoryview(bytearray(0 if into else min(_PIECE, self.nbytes)))
        done = 0
        with self.file.opened() as fd:
            while done < self.nbytes:
                room = into[done : done + _PIECE] if into else scratch[: self.nbytes - done]
                got = os.preadv(fd, [room], self.offset + done)
                if not got:
                    raise OSError(errno.EIO, "it is shorter now")
                digest.update(room[:got])
                done += got
        return digest.hexdigest()


class Copies:
    """Copies of blobs that lie in files: one for all who use it at a time, kept for as long as any of them does.

    The first ones, up to `kept_nbytes` together, are kept for ever.
    """

    def __init__(self, kept_nbytes: int = 0) -> None:
        self._used: WeakValueDictionary[str, Array] = WeakValueDictionary()
        self._kept: list[Array] = []
        self._room = kept_nbytes
        self._lock = threading.Lock()

    def __contains__(self, hash: str) -> bool:
        return hash in self._used

    def open(self, hash: str, part: Callable[[], Part]) -> memoryview:
        """The bytes of `part()`, whose hash this is. ChangedError if it no longer is, and what `part` raises."""
        data = self._used.get(hash)
        if data is None:
            data = part().read(hash)  # not under the lock: others need not wait for it
            with self._lock:
                data = self._used.setdefault(hash, data)
                if data.nbytes <= self._room:
                    self._kept.append(data)
                    self._room -= data.nbytes
        return data.data


class DataFiles:
    """A model's external-data files, each opened once; where they may lie, `named` says."""

    def __init__(self, folder: Path, linked: Sequence[Path] = ()) -> None:
        self.folder, self.linked = folder.resolve(), linked
        self._files: dict[Path, DataFile] = {}

    def part(self, location: str, offset: int, length: int) -> Part:
        """That much of the file at `location`. ModelError if it is not there, or may not be read."""
        try:
            path = named(location, self.folder, self.linked)
        except ValueError as exc:
            raise ModelError(f"the model's external data {exc}") from exc
        if path not in self._files:
            try:
                self._files[path] = DataFile(path, stays=len(self._files) < _MOST_OPEN)
            except (OSError, ValueError) as exc:
                why = getattr(exc, "strerror", None) or exc
                raise ModelError(f"the model's external data file {path} cannot be read: {why}") from exc
        file = self._files[path]
        end = offset + length
        if offset < 0 or end > file.nbytes or end < offset:
            raise ModelError(f"the model's external data file {path} is too short: {file.nbytes} bytes, {end} needed")
        return Part(file, offset, length)


#: Inputs that scale what comes in: 1 changes nothing. (Of batch norms, also the variance.)
_ONES = frozenset({
    ("Mul", 0), ("Mul", 1), ("Div", 1), ("Pow", 1), ("BatchNormalization", 1), ("BatchNormalization", 4),
    ("LayerNormalization", 1), ("InstanceNormalization", 1), ("GroupNormalization", 1), ("RMSNormalization", 1),
    ("SimplifiedLayerNormalization", 1),
})  # fmt: skip
#: The step between two integers.
_STEPS = frozenset({("QuantizeLinear", 1), ("DequantizeLinear", 1), ("QLinearConv", 1), ("QLinearConv", 4),
                    ("QLinearConv", 6), ("QLinearMatMul", 1), ("QLinearMatMul", 4), ("QLinearMatMul", 6)})  # fmt: skip


class StandIn:
    """Blobs of the right size and type without their values, so that a device can time a model it has not fetched.

    Answers computed with them mean nothing. Values keep activations at a usual size, by who reads them in `skeleton`:
    numbers below 1e-38 (denormals) would take a processor ten times as long. Integers are 0, because they may be
    indices.
    """

    def __init__(self, skeleton: Proto) -> None:
        readers: dict[str, tuple[str, int]] = {}
        for node in skeleton.graph.node:
            for place, name in enumerate(node.input):
                readers.setdefault(name, (node.op_type, place))
        #: By hash: a tensor that has it, the operator that reads this one first, and as which input.
        self._tensors: dict[str, tuple[Proto, tuple[str, int]]] = {}
        for t in skeleton.graph.initializer:
            if digest := blob_hash(t):
                self._tensors.setdefault(digest, (t, readers.get(t.name, ("", 0))))

    def open(self, hash: str) -> memoryview:
        if hash not in self._tensors:
            raise StorageError(f"weight blob {hash[:12]}… is not here")
        tensor, reader = self._tensors[hash]
        dtype = str(onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).name)
        mean, spread = 0.0, 0.0
        if dtype not in ("float16", "float32", "float64"):
            return memoryview(bytes(nbytes(tensor)))
        if reader in _STEPS:
            mean = 2.0**-6
        elif reader in _ONES:
            mean = 1.0
        elif len(tensor.dims) < 2:
            spread = 0.01  # a bias
        else:  # He's: a layer keeps the size of its input
            fan_in = tensor.dims[0] if reader[0] in ("MatMul", "Gemm") else int(np.prod(tensor.dims[1:]))
            spread = float(np.sqrt(2 / max(1, fan_in)))
        # One block over and over: half a gigabyte of fresh random numbers would take seconds, and time the same.
        block = np.random.default_rng(0).standard_normal(1 << 14) * spread + mean
        values: Array = np.resize(block.astype(dtype), nbytes(tensor) // ITEM_SIZES[dtype])
        values.flags.writeable = False
        return values.view(np.uint8).data


def give_weights(options: Any, proto: Proto, weights: Weights) -> dict[str, Any]:
    """Let a session of `options` copy the blobs of `proto`'s weights; the caller holds what is returned until then.

    StorageError if a blob is not there or not as long as the weight.

    Not with `options.add_initializer`, which would share a weight's memory with the kernels and save a copy of what
    ONNX Runtime does not repack: the kernels would then see the weight as it was before the optimiser reshaped it
    (ConvNeXt's layer scale [384,1,1] behind a moved Transpose: wrong broadcast, and where sizes agree a wrong answer).
    """
    # By name, over the blobs' own memory (no copy on the CPU).
    held: dict[str, Any] = {}
    # Those that nothing reads ONNX Runtime would drop first, and then miss.
    used = {t for n in proto.graph.node for t in reads(n)} | {o.name for o in proto.graph.output}
    for t in proto.graph.initializer:
        digest = blob_hash(t)
        if not digest or t.name not in used:
            continue
        data = weights.open(digest)
        if data.nbytes != nbytes(t):
            raise StorageError(f"weight blob {digest[:12]}… has {data.nbytes} bytes, weight {t.name} needs {nbytes(t)}")
        raw = np.frombuffer(data, dtype=np.uint8)
        dtype = onnx.helper.tensor_dtype_to_np_dtype(t.data_type)
        if dtype.name in ITEM_SIZES:
            array = raw.view(dtype).reshape(tuple(t.dims))
            held[t.name] = ort.OrtValue.ortvalue_from_numpy(np.require(array, requirements="A"))
        else:
            held[t.name] = ort.OrtValue.ortvalue_from_numpy_with_onnx_type(_stand_in(raw, t), t.data_type)
    options.add_external_initializers(list(held), list(held.values()))
    return held


def _stand_in(raw: Array, tensor: Proto) -> Array:
    """`raw` as an array of the weight's own shape, for a type numpy has not (bfloat16, packed 4-bit values).

    ONNX Runtime takes the shape from the array and the values from its memory, of which packed ones fill a part.
    """
    count = int(np.prod(tensor.dims, dtype=np.int64))
    if raw.nbytes >= count:
        return raw.view(f"u{raw.nbytes // count}").reshape(tuple(tensor.dims))
    padded = np.zeros(count, np.uint8)
    padded[: raw.nbytes] = raw
    return padded.reshape(tuple(tensor.dims))
