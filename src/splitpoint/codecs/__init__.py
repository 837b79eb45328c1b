"""Codecs turn a tensor into fewer bytes for the link, and back.

    int8 = open_codec("int8")
    data = int8.encode(features)                  # uint8[n], what travels
    close = int8.decode(data, spec_of("x", features))

Names are ``raw``, ``fp16``, ``int8``, ``int4``, each also with ``+zstd``, and ``jpeg:QUALITY``.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from splitpoint.errors import UsageError, nearest
from splitpoint.tensors import Array, TensorSpec


class Codec(Protocol):
    """Tensor ↔ bytes. All specs here are bound (no free dimension)."""

    name: str
    """As plans, command lines and the wire have it: ``int8+zstd``, ``jpeg:90``."""
    exact: bool
    """Whether what is decoded equals what was encoded, bit for bit."""
    sized: bool
    """Whether `nbytes` is exact, known without encoding; otherwise it is an estimate."""

    def accepts(self, spec: TensorSpec) -> bool:
        """Whether such a tensor can be encoded. Integer tensors are never quantised; jpeg takes uint8[1,h,w,1|3]."""
        ...

    def nbytes(self, spec: TensorSpec) -> int:
        """Bytes that a tensor of `spec` takes encoded."""
        ...

    def most(self, spec: TensorSpec) -> int:
        """The most bytes that an honest encoding of `spec` has: a receiver refuses more before it allocates."""
        ...

    def encode(self, array: Array) -> Array:
        """`array` as contiguous uint8[n]. InputError for what `accepts` refuses."""
        ...

    def decode(self, data: Array, spec: TensorSpec) -> Array:
        """The tensor in `data` (uint8[n], from a stranger). InputError unless it is exactly one of `spec`; memory
        beyond what `spec` and `most` say is never allocated."""
        ...
