"""Random weights that need no PyTorch, and the files of networks that have them: the same bytes on every machine.

Two machines that build a network from the same seed have the same model, by its fingerprint. So the weights are whole
numbers first (no sum of floats is the same everywhere), and each filter's sum to zero: what all inputs have in common,
such as their brightness, is taken out in every layer, and the answers depend on the input.
"""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from math import prod, sqrt
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import onnx
from onnx import numpy_helper

from splitpoint.errors import StorageError, UsageError
from splitpoint.files import beside, make_folder, private_folder, write_atomic
from splitpoint.machine import default_cache
from splitpoint.models.layer_names import SOURCE_KEY, metadata
from splitpoint.tensors import Array

#: In every file's name: raised when what is drawn changes.
VERSION = 1
#: Numbers drawn at a time.
_PIECE = 1 << 22
#: Weights with fewer bytes stand in the ONNX file itself.
_LARGE = 1 << 10


def seed_of(weights: str | None) -> int | None:
    """``random`` → 0, ``random:7`` → 7; None for anything else. UsageError for a seed that is no number."""
    word, colon, seed = (weights or "").partition(":")
    if word != "random":
        return None
    if colon and not seed.isdecimal():
        raise UsageError(f"--weights {weights}: the seed must be a whole number, as in random:7")
    return int(seed) % 2**63 if colon else 0


def pieces(name: str, shape: Sequence[int], seed: int, gain: float = 3.0) -> Iterator[Array]:
    """The weight `name`, float32[`shape`], in rows of its first dimension: of variance `gain` over what a filter reads.

    3 keeps the spread of what comes out of a ReLU, 1 that of what comes out of nothing of the kind.

    >>> weight = np.concatenate(list(pieces("conv", (8, 3, 5, 5), 0)))
    >>> weight.shape, bool(abs(weight.sum(axis=(1, 2, 3))).max() < 1e-3)
    ((8, 3, 5, 5), True)
    """
    draw = np.random.default_rng([seed, crc32(name.encode())])
    fan_in = prod(shape[1:])
    scale = np.float32(sqrt(12 * gain / fan_in) / 2**16)
    rows = max(2, _PIECE // fan_in // 2 * 2)  # even: whole words of the generator
    for first in range(0, shape[0], rows):
        count = min(rows, shape[0] - first)
        whole = np.frombuffer(draw.bytes(2 * count * fan_in), "<i2").astype(np.int32).reshape(count, fan_in)
        whole -= (whole.sum(axis=1, dtype=np.int64, keepdims=True) // fan_in).astype(np.int32)
        yield (whole.astype(np.float32) * scale).reshape(count, *shape[1:])


def kept(stem: str, seed: int, write: Callable[[Path], None], of: str = "") -> Path:
    """The ONNX file `stem` of random weights with that seed, written by `write` if the cache does not have it. `of`
    says what it is made from, if that may change.

    The cache is that of exports; where it cannot be written, a temporary folder of this process.
    """
    exports = default_cache() / "exports"
    path = exports / f"{stem}{of}-random-{seed}-v{VERSION}" / f"{stem}.onnx"
    try:
        private_folder(exports)
        if not os.path.isfile(path):
            make_folder(path.parent)
            write(path)
    except StorageError as exc:  # what is only kept for the next time must not end this one
        try:
            instead = tempfile.mkdtemp(prefix="splitpoint-")
        except OSError:
            raise exc from None
        atexit.register(shutil.rmtree, instead, ignore_errors=True)
        path = Path(instead) / path.name
        write(path)
    return path


def write_model(path: Path, proto: Any, weights: Sequence[tuple[str, Sequence[int], Iterator[Array]]]) -> None:
    """Write `proto` to `path`, and beside it its large weights (name, shape, pieces), which are drawn as they are
    written: VGG-16's 550 MB are never in memory at once. StorageError."""
    data = path.with_suffix(".data")
    try:
        with beside(data) as file:
            for name, shape, drawn in weights:
                tensor = proto.graph.initializer.add(name=name, data_type=onnx.TensorProto.FLOAT, dims=shape)
                if 4 * prod(shape) < _LARGE:
                    tensor.CopyFrom(numpy_helper.from_array(np.concatenate(list(drawn)), name))
                    continue
                tensor.data_location = onnx.TensorProto.EXTERNAL
                place = {"location": data.name, "offset": file.tell(), "length": 4 * prod(shape)}
                for key, value in place.items():
                    tensor.external_data.add(key=key, value=str(value))
                for piece in drawn:
                    file.write(piece.astype("<f4", copy=False).tobytes())
    except OSError as exc:
        raise StorageError(f"{data} cannot be written: {exc.strerror or exc}") from exc
    write_atomic(path, proto.SerializeToString())


def redrawn(source: Path, seed: int) -> Path:
    """The ONNX file `source` (of ours: small, its weights inside) with random weights instead of its own: of filters
    and matrices. What it adds stays."""

    def write(path: Path) -> None:
        proto = onnx.load(source)
        for tensor in proto.graph.initializer:
            old = numpy_helper.to_array(tensor)
            if old.ndim > 1 and old.dtype.kind == "f":
                new = np.concatenate(list(pieces(tensor.name, old.shape, seed))).astype(old.dtype)
                tensor.CopyFrom(numpy_helper.from_array(new, tensor.name))
        said = f"{source.stem} with random weights, seed {seed}, not the trained ones of the zoo"
        onnx.helper.set_model_props(proto, {**metadata(proto), SOURCE_KEY: said})
        write_atomic(path, proto.SerializeToString())

    return kept(source.stem, seed, write, f"-{crc32(source.read_bytes()):08x}")
