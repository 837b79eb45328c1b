"""Codecs turn a tensor into fewer bytes for the link, and back.

    int8 = open_codec("int8")
    data = int8.encode(features)                  # uint8[n], what travels
    close = int8.decode(data, spec_of("x", features))

Names are ``raw``, ``fp16``, ``int8``, ``int4``, each also with ``+zstd``, and ``jpeg:QUALITY``. What each one's bytes
are is in docs/codecs.md.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Protocol

from splitpoint.errors import UsageError, nearest
from splitpoint.tensors import Array, TensorSpec


class Codec(Protocol):
    """Tensor ↔ bytes. All specs here are bound (no free dimension). Threads may share one."""

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
        """`array` as contiguous uint8[n]; it may share memory with `array`.

        InputError for what `accepts` refuses, and for values that the codec cannot express (a NaN, for int8).
        """
        ...

    def decode(self, data: Array, spec: TensorSpec) -> Array:
        """The tensor in `data` (uint8[n], from a stranger); it may share memory with `data`, and be read-only.

        InputError unless it is exactly one of `spec`; memory beyond what `spec` and `most` say is never allocated.
        """
        ...


#: Name, or the part before the colon → who makes it: a function of the whole name. Imported when asked for.
CODECS: Mapping[str, str] = {
    "raw": "splitpoint.codecs.cast:Raw",
    "fp16": "splitpoint.codecs.cast:Half",
    "int8": "splitpoint.codecs.affine:Affine",
    "int4": "splitpoint.codecs.affine:Affine",
    "raw+zstd": "splitpoint.codecs.packed:Zstd",
    "fp16+zstd": "splitpoint.codecs.packed:Zstd",
    "int8+zstd": "splitpoint.codecs.packed:Zstd",
    "int4+zstd": "splitpoint.codecs.packed:Zstd",
    "jpeg": "splitpoint.codecs.jpeg:Jpeg",
}

_QUALITY = re.compile(r"jpeg:([1-9][0-9]?|100)", re.ASCII)


@lru_cache(maxsize=128)
def open_codec(name: str) -> Codec:
    """The codec of that name. UsageError names the nearest if there is none.

    >>> open_codec("int8").nbytes(TensorSpec("x", "float32", (1, 64, 28, 28)))
    50688
    """
    kind, _, _ = name.partition(":")
    if kind not in CODECS or (name not in CODECS and not _QUALITY.fullmatch(name)):
        known = ", ".join(n for n in CODECS if n != "jpeg")
        hint = nearest(name, CODECS) if len(name) < 40 else ""
        raise UsageError(f"no codec is called {name[:40]!r}{hint} (known: {known}, and jpeg:1 to jpeg:100)")
    if name == "jpeg":
        raise UsageError("the codec jpeg needs a quality from 1 to 100: jpeg:90, for instance")
    module, _, attribute = CODECS[kind].partition(":")
    codec: Codec = getattr(importlib.import_module(module), attribute)(name)
    return codec
