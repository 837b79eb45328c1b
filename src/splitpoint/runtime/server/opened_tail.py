"""What an INFER for an opened segment must be, and how its tensors are decoded."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import NamedTuple

import numpy as np

from splitpoint import wire
from splitpoint.codecs import Codec, open_codec
from splitpoint.errors import EngineError, InputError, UsageError
from splitpoint.runtime.server import OpenTail
from splitpoint.tensors import Array, TensorSpec
from splitpoint.units import size
from splitpoint.wire import Kind, Limits


class CheckedInfer(NamedTuple):
    """A header that fits its segment: how each tensor is decoded (empty: all are raw), the memory that takes, and what
    its runner says of such inputs."""

    header: wire.Infer
    decoders: Sequence[tuple[Codec, TensorSpec] | None] = ()
    decoded_nbytes: int = 0
    kind: object = None


class OpenedTail:
    """A segment that a connection has opened, and what INFER for it needs, looked up once.

    `batch`: whether its RESULTs say which requests ran as one.
    """

    def __init__(self, tail: OpenTail, vectors: Sequence[str], limits: Limits, *, batch: bool) -> None:
        segment = tail.segment
        wanted = set(vectors)
        self.tail = tail
        self.specs = [t for t in segment.inputs if t.name not in wanted]
        self.vectors = [t for t in segment.inputs if t.name in wanted]
        self.inputs = [t.name for t in self.specs]
        self.outputs = [t.name for t in segment.outputs]
        self.packer = wire.Packer(Kind.RESULT, wire.ResultData, batch=batch)
        self.checked = CheckedInfer(wire.Infer(0, ()))
        """The last header that fitted."""
        self._limits = limits

    def check(self, header: wire.Infer) -> int:
        """Bytes that decoding the tensors will take. InputError unless they are what the segment needs: known before
        a byte of them is received."""
        if header is self.checked.header:  # a connection decodes a repeated header once
            return self.checked.decoded_nbytes
        if len(header.tensors) != len(self.specs) or len(header.vectors) != len(self.vectors):
            raise InputError(
                f"this segment needs {len(self.specs)} tensors and {len(self.vectors)} shape vectors, "
                f"but {len(header.tensors)} and {len(header.vectors)} came"
            )
        for spec, got in zip(self.specs, header.tensors, strict=True):
            if not spec.fits(got.dtype, got.shape):
                raise InputError(f"tensor {spec.name} must be {spec.type}, but {got.type} came")
        for spec, vector in zip(self.vectors, header.vectors, strict=True):
            _check_vector(spec, vector, self._limits)
        self.checked = self._decoding(header)
        return self.checked.decoded_nbytes

    def _decoding(self, header: wire.Infer) -> CheckedInfer:
        """How the tensors of `header`, which fit otherwise, are decoded. InputError for what no codec here does."""
        kind = self._kind(header)
        if not any(t.codec for t in header.tensors):
            return CheckedInfer(header, kind=kind)
        decoders = [
            _decoder(name, tensor) if tensor.codec else None
            for name, tensor in zip(self.inputs, header.tensors, strict=True)
        ]
        return CheckedInfer(header, decoders, sum(d[1].nbytes for d in decoders if d is not None), kind)

    def _kind(self, header: wire.Infer) -> object:
        shapes = {t.name: got.shape for t, got in zip(self.specs, header.tensors, strict=True)}
        shapes |= {t.name: (len(v),)[: len(t.shape)] for t, v in zip(self.vectors, header.vectors, strict=True)}
        inputs = self.tail.segment.inputs
        return self.tail.kind_of(
            [t.dtype for t in inputs], [shapes[t.name] for t in inputs], vectors=bool(self.vectors)
        )

    def feed(self, checked: CheckedInfer, tensors: Sequence[Array]) -> dict[str, Array]:
        """What the session is run with: the tensors, decoded, and the shape vectors, by name. InputError for bytes that
        are not what they should be."""
        if checked.decoders:
            tensors = [
                array if decoder is None else _decoded(array, *decoder)
                for array, decoder in zip(tensors, checked.decoders, strict=True)
            ]
        known = dict(zip(self.inputs, tensors, strict=True))
        if self.vectors:
            for spec, vector in zip(self.vectors, checked.header.vectors, strict=True):
                known[spec.name] = np.array(vector, np.int64).reshape(-1 if spec.shape else ())
        return known


def _decoder(name: str, tensor: wire.Tensor) -> tuple[Codec, TensorSpec]:
    """The codec that `tensor` came with and what it decodes to. InputError if it cannot: nothing is allocated yet."""
    # Only names that we told the peer, with their parameters: no stranger chooses what is looked up here.
    known = len(tensor.codec) <= 40 and wire.codec_feature(tensor.codec) in wire.features()
    try:
        codec = open_codec(tensor.codec) if known else None
    except UsageError:
        codec = None
    if codec is None:
        text = wire.plain(tensor.codec, 40)
        raise InputError(f"tensor {name} came with the codec {text}, which is not known here")
    spec = TensorSpec(name, tensor.dtype, tensor.shape)
    if not codec.accepts(spec):
        raise InputError(f"tensor {name} came with the codec {codec.name}, which does not take {spec.type}")
    most = codec.most(spec)
    if tensor.nbytes > most:
        raise InputError(
            f"tensor {name} came as {tensor.nbytes} bytes of {codec.name}: {spec.type} takes at most {most}"
        )
    return codec, spec


def _decoded(data: Array, codec: Codec, spec: TensorSpec) -> Array:
    array = codec.decode(data, spec)
    # The engine must never see anything but what the segment takes, whatever a codec made of a stranger's bytes.
    if array.dtype.name != spec.dtype or array.shape != spec.shape:
        raise EngineError(f"codec {codec.name} decoded tensor {spec.name} to something else than {spec.type}")
    return array


def _check_vector(spec: TensorSpec, vector: Sequence[int], limits: Limits) -> None:
    length = spec.shape[0] if spec.shape else 1
    if len(vector) > 32 or (isinstance(length, int) and len(vector) != length):
        raise InputError(f"shape vector {spec.name} must have {length} numbers, but {len(vector)} came")
    # A shape sizes what the tail allocates, of elements of up to 8 bytes: one that no frame could carry is refused.
    if prod(max(1, abs(n)) for n in vector) * 8 > limits.tensor_bytes:
        raise InputError(f"shape vector {spec.name} asks for a tensor over the limit of {size(limits.tensor_bytes)}")
