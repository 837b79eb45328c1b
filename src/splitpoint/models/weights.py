"""Weight blobs: raw little-endian bytes of one tensor, addressed by their SHA-256.

A model is a graph without weights plus blobs. That is what makes re-splitting cheap (a device fetches only what
it does not have), lets two models share a backbone, and lifts protobuf's limit of 2 GB.
"""

from __future__ import annotations

import hashlib
import mmap
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from splitpoint.errors import ModelError, StorageError
from splitpoint.models.external import data_file
from splitpoint.models.soundness import blob_hash, nbytes
from splitpoint.tensors import ITEM_SIZES, Array


@dataclass(frozen=True, slots=True)
class Blob:
    """The bytes of one weight tensor: `hash` is SHA-256 in hex."""

    hash: str
    nbytes: int


class Weights(Protocol):
    """Where blobs come from.

    >>> weights = MemoryWeights()
    >>> digest = weights.add(b"four")
    >>> bytes(weights.open(digest))
    b'four'
    """

    def open(self, hash: str) -> memoryview:
        """The blob's bytes, read-only, without a copy where possible. StorageError if it is not there."""
        ...


class MemoryWeights:
    """Blobs held in memory or mapped from a file, by hash."""

    def __init__(self) -> None:
        self._blobs: dict[str, memoryview] = {}

    def add(self, data: bytes | memoryview) -> str:
        digest = hashlib.sha256(data).hexdigest()
        self._blobs.setdefault(digest, memoryview(data))
        return digest

    def open(self, hash: str) -> memoryview:
        try:
            return self._blobs[hash]
        except KeyError:
            raise StorageError(f"weight blob {hash[:12]}… is not here") from None

    def sizes(self) -> Mapping[str, Blob]:
        return {h: Blob(h, b.nbytes) for h, b in self._blobs.items()}


class MappedFiles:
    """Read-only maps of external-data files, each opened once; where they may lie, `data_file` says."""

    def __init__(self, folder: Path, linked: Path | None = None) -> None:
        self.folder, self.linked = folder.resolve(), linked
        self._maps: dict[Path, memoryview] = {}

    def slice(self, location: str, offset: int, length: int | None) -> memoryview:
        path = data_file(location, self.folder, self.linked)
        if path not in self._maps:
            try:
                with path.open("rb") as file:
                    self._maps[path] = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
            except (OSError, ValueError) as exc:
                raise ModelError(f"the model's external data file {path} cannot be read: {exc}") from exc
        data = self._maps[path]
        end = data.nbytes if length is None else offset + length
        if offset < 0 or end > data.nbytes or end < offset:
            raise ModelError(f"the model's external data file {path} is too short: {data.nbytes} bytes, {end} needed")
        return data[offset:end]


# --- weights that are not there -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Made:
    """How to make a blob up: `nbytes` of `dtype` (empty: of zero bytes), normal around `mean`."""

    nbytes: int
    dtype: str = ""
    mean: float = 0.0
    spread: float = 0.0


class StandIn:
    """Blobs of the right size and type without their values, so that a device can time a model it has not fetched.

    Answers computed with them mean nothing. Values keep activations at a usual size: numbers below 1e-38 (denormals)
    would take a processor ten times as long. Integers are 0, because they may be indices.
    """

    def __init__(self, made: Mapping[str, Made]) -> None:
        self._made = made

    def open(self, hash: str) -> memoryview:
        made = self._made.get(hash)
        if made is None:
            raise StorageError(f"weight blob {hash[:12]}… is not here")
        if not made.dtype:
            return memoryview(bytes(made.nbytes))
        # One block over and over: half a gigabyte of fresh random numbers would take seconds, and time the same.
        block = np.random.default_rng(0).standard_normal(1 << 14) * made.spread + made.mean
        values: Array = np.resize(block.astype(made.dtype), made.nbytes // ITEM_SIZES[made.dtype])
        values.flags.writeable = False
        return values.view(np.uint8).data


#: Inputs that scale what comes in: 1 changes nothing. (Of batch norms, also the variance.)
_ONES = frozenset(
    {("Mul", 0), ("Mul", 1), ("Div", 1), ("Pow", 1), ("BatchNormalization", 1), ("BatchNormalization", 4),
     ("LayerNormalization", 1), ("InstanceNormalization", 1), ("GroupNormalization", 1), ("RMSNormalization", 1),
     ("SimplifiedLayerNormalization", 1)}
)  # fmt: skip
#: The step between two integers.
_STEPS = frozenset({("QuantizeLinear", 1), ("DequantizeLinear", 1), ("QLinearConv", 1), ("QLinearConv", 4),
                    ("QLinearConv", 6), ("QLinearMatMul", 1), ("QLinearMatMul", 4), ("QLinearMatMul", 6)})  # fmt: skip


def stand_ins(skeleton: Any) -> StandIn:
    """Stand-ins for every blob that `skeleton` refers to, each of a size that suits who reads it."""
    import onnx

    readers: dict[str, tuple[str, int]] = {}
    for node in skeleton.graph.node:
        for place, name in enumerate(node.input):
            readers.setdefault(name, (node.op_type, place))
    made: dict[str, Made] = {}
    for t in skeleton.graph.initializer:
        digest = blob_hash(t)
        if not digest or digest in made:
            continue
        dtype = str(onnx.helper.tensor_dtype_to_np_dtype(t.data_type).name)
        if dtype not in ("float16", "float32", "float64"):
            made[digest] = Made(nbytes(t))
            continue
        reader = readers.get(t.name, ("", 0))
        if reader in _STEPS:
            mean, spread = 2.0**-6, 0.0
        elif reader in _ONES:
            mean, spread = 1.0, 0.0
        elif len(t.dims) < 2:
            mean, spread = 0.0, 0.01  # a bias
        else:  # He's: a layer keeps the size of its input
            fan_in = t.dims[0] if reader[0] in ("MatMul", "Gemm") else int(np.prod(t.dims[1:]))
            mean, spread = 0.0, float(np.sqrt(2 / max(1, fan_in)))
        made[digest] = Made(nbytes(t), dtype, mean, spread)
    return StandIn(made)
