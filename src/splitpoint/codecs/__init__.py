"""Codecs turn a tensor into fewer bytes for the link, and back.

    int8 = open_codec("int8")
    data = int8.encode(features)                  # uint8[n], what travels
    close = int8.decode(data, spec_of("x", features))

Names are ``raw``, ``fp16``, ``int8``, ``int4``, each also with ``+zstd``, ``jpeg:QUALITY`` and ``jpeg444:QUALITY``.
What each one's bytes are is in docs/codecs.md. `OPPONENTS` are pictures that are calibrated and planned with, so that a
cut is compared with them, and never sent.

Adding one is a file with a class that has the methods of `Codec`, and a row in `CODECS`: profiles, calibrations,
predictions, the wire's features and the command line read that table.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from functools import lru_cache
from typing import NamedTuple, Protocol

import numpy as np

from splitpoint.errors import InputError, UsageError, nearest
from splitpoint.tensors import Array, TensorSpec, spec_of

#: The dtypes that lossy codecs take. Integers are ids, counts or quantised already: their bits all mean something.
FLOATS = frozenset({"float16", "float32", "float64"})


class Codec(Protocol):
    """Tensor ↔ bytes. All specs here are bound (no free dimension). Threads may share one.

    A class that has it as its base is a lossy codec of floats with a known size, but for what it says otherwise.
    """

    name: str
    """As plans, command lines and the wire have it: ``int8+zstd``, ``jpeg:90``."""
    exact: bool = False
    """Whether what is decoded equals what was encoded, bit for bit."""
    sized: bool = True
    """Whether `nbytes` is exact, known without encoding; otherwise it is an estimate."""
    stepped: bool = False
    """Whether it can be asked to `fit` a tensor."""

    @property
    def sent_as(self) -> str:
        """What the wire calls it: its name, or, where tables are needed to decode it, the start of their hash."""
        return self.name

    def accepts(self, spec: TensorSpec) -> bool:
        """Whether such a tensor can be encoded. Integer tensors are never quantised; jpeg takes uint8[1,h,w,1|3]."""
        return spec.dtype in FLOATS

    def nbytes(self, spec: TensorSpec) -> int:
        """Bytes that a tensor of `spec` takes encoded."""
        ...

    def most(self, spec: TensorSpec) -> int:
        """The most bytes that an honest encoding of `spec` has: a receiver refuses more before it allocates."""
        return self.nbytes(spec)

    def encode(self, array: Array) -> Array:
        """`array` as contiguous uint8[n]; it may share memory with `array`.

        InputError for what `accepts` refuses, and for values that the codec cannot express (a NaN, for int8).
        """
        ...

    def fit(self, array: Array, max_bytes: int) -> tuple[Array, str]:
        """(`array` encoded, the codec's name for that): of a codec with steps coarser than usual, if more than
        `max_bytes` come out, and as near to them as its coarsest step allows."""
        return self.encode(array), self.name

    def decode(self, data: Array, spec: TensorSpec) -> Array:
        """The tensor in `data` (uint8[n], from a stranger); it may share memory with `data`, and be read-only.

        InputError unless it is exactly one of `spec`; memory beyond what `spec` and `most` say is never allocated.
        """
        ...


class CodecEntry(NamedTuple):
    """A codec as the table has it: what is known of it before it is imported."""

    where: str
    """``module:function``; the function takes the whole name and gives the codec."""
    cost: tuple[float, float, float, float]
    """What it takes where nobody has measured it, as in `CodecCost`: one core of an AMD EPYC, by `profile`."""
    calibrated: bool = True
    """Whether a calibration tries it if nothing else is asked for."""
    qualities: range = range(0)
    """If it has any, names are ``kind:quality``; the table then says which quality is measured, and which are tried."""
    usual: int = 0
    tried: tuple[int, ...] = ()
    picture: str = ""
    """What a table calls it, if it is a picture: ``JPEG``."""
    tables: bool = False
    """Whether it encodes and decodes with the tables of a tensor alone, which a calibration learns."""


#: Name, or the part before the colon → the codec. Everything that goes over all codecs reads this table.
CODECS: Mapping[str, CodecEntry] = {
    "raw": CodecEntry("splitpoint.codecs.cast:Raw", (0.006, 0.0, 0.004, 0.0), calibrated=False),
    "fp16": CodecEntry("splitpoint.codecs.cast:Half", (0.045, 0.51, 0.022, 0.31)),
    "int8": CodecEntry("splitpoint.codecs.affine:Affine", (0.115, 0.30, 0.059, 0.21)),
    "int4": CodecEntry("splitpoint.codecs.affine:Affine", (0.130, 0.33, 0.068, 0.28)),
    "raw+zstd": CodecEntry("splitpoint.codecs.packed:Zstd", (0.163, 2.89, 0.032, 1.32)),
    "fp16+zstd": CodecEntry("splitpoint.codecs.packed:Zstd", (0.299, 3.47, 0.095, 1.99), calibrated=False),
    "int8+zstd": CodecEntry("splitpoint.codecs.packed:Zstd", (0.406, 1.98, 0.203, 1.13)),
    "int4+zstd": CodecEntry("splitpoint.codecs.packed:Zstd", (0.326, 1.25, 0.190, 0.76)),
    "jpeg": CodecEntry(
        "splitpoint.codecs.pictures:Picture", (0.150, 1.94, 0.159, 2.82),
        qualities=range(1, 101), usual=90, tried=(50, 60, 75, 85, 90, 95, 98), picture="JPEG",
    ),
    "jpeg444": CodecEntry(
        "splitpoint.codecs.pictures:Picture", (0.160, 2.60, 0.170, 3.40),
        qualities=range(1, 101), usual=90, tried=(75, 85, 90, 95, 98), picture="JPEG 4:4:4",
    ),
    "klt": CodecEntry(
        "splitpoint.codecs.untabled:Untabled", (0.2, 3.0, 0.3, 6.0), qualities=range(1, 101), usual=50,
        tried=tuple(range(20, 95, 5)), tables=True,
    ),
}  # fmt: skip
#: Pictures that other systems send instead, and what no cut should be compared without. They are priced and never
#: sent: `open_codec` knows none of them, so that no byte from elsewhere reaches their decoders (docs/codecs.md).
#: ``@50``: at half the sides. Their costs are of 224 x 224 photos (`bench.fidelity`), shared out by JPEG's.
OPPONENTS: Mapping[str, CodecEntry] = {
    name: CodecEntry("splitpoint.codecs.pictures:Picture", cost, qualities=range(1, 101) if tried else range(0),
                     usual=90, tried=tried, picture=picture)
    for name, cost, tried, picture in (
        ("jpeg@75", (0.40, 5.5, 0.30, 5.0), (50, 75, 90), "JPEG at 75 % of the sides"),
        ("jpeg@50", (0.40, 4.3, 0.30, 4.0), (50, 75, 90), "JPEG at half the sides"),
        ("webp", (0.40, 31.0, 0.20, 5.6), (75, 85, 90, 95, 98, 100), "WebP"),
        ("webp@75", (0.40, 25.0, 0.30, 7.1), (75, 90), "WebP at 75 % of the sides"),
        ("avif", (4.0, 360.0, 0.30, 10.0), (60, 70, 80, 85, 90, 95), "AVIF"),
        ("avif@75", (3.0, 230.0, 0.40, 10.5), (70, 90), "AVIF at 75 % of the sides"),
        ("webp-lossless", (2.0, 255.0, 0.20, 7.2), (), "lossless WebP"),
        ("png", (0.20, 76.0, 0.10, 9.3), (), "PNG"),
    )
}  # fmt: skip
#: All that has a price.
PRICED: Mapping[str, CodecEntry] = {**CODECS, **OPPONENTS}


def needs_tables(name: str) -> bool:
    """Whether the codec of that name needs the tables of a tensor.

    >>> needs_tables("klt:50"), needs_tables("int8")
    (True, False)
    """
    entry = CODECS.get(name.partition(":")[0])
    return entry is not None and entry.tables


def usual_name(kind: str) -> str:
    """The name that stands for a row of the table where its cost is measured: ``int8``, ``jpeg:90``."""
    entry = PRICED[kind]
    return f"{kind}:{entry.usual}" if entry.qualities else kind


def picture(name: str) -> str:
    """What a table calls a picture of that name; empty for a codec that is none.

    >>> picture("jpeg444:90"), picture("png"), picture("int8")
    ('JPEG 4:4:4 q90', 'PNG', '')
    """
    kind, _, quality = name.partition(":")
    words = PRICED[kind].picture if kind in PRICED else ""
    return f"{words} q{quality}" if words and quality else words


def known_names() -> str:
    """The names of all that may be sent, as a user is told them: ``raw, …; jpeg:1 to jpeg:100, …``."""
    plain = ", ".join(kind for kind, entry in CODECS.items() if not entry.qualities)
    graded = (f"{k}:{e.qualities[0]} to {k}:{e.qualities[-1]}" for k, e in CODECS.items() if e.qualities)
    return f"{plain}; {', '.join(graded)}"


def calibrated_names() -> tuple[str, ...]:
    """What a calibration tries if nothing else is asked for: ``fp16``, …, ``jpeg:50``, …"""
    return tuple(
        name
        for kind, entry in PRICED.items()
        if entry.calibrated
        for name in ([f"{kind}:{q}" for q in entry.tried] if entry.qualities else [kind])
    )


@lru_cache(maxsize=128)
def open_codec(name: str) -> Codec:
    """The codec of that name. UsageError names the nearest if there is none.

    >>> open_codec("int8").nbytes(TensorSpec("x", "float32", (1, 64, 28, 28)))
    50688
    """
    return _open(name, CODECS)


@lru_cache(maxsize=256)
def open_priced(name: str) -> Codec:
    """The codec or opponent of that name: for calibrations and plans. UsageError if there is none."""
    return _open(name, PRICED)


def _open(name: str, entries: Mapping[str, CodecEntry]) -> Codec:
    kind, colon, quality = name.partition(":")
    entry = entries.get(kind)
    if entry is None or (colon and not entry.qualities):
        hint = nearest(name, entries) if len(name) < 40 else ""
        raise UsageError(f"no codec is called {name[:40]!r}{hint} (known: {known_names()})")
    if entry.qualities and quality not in map(str, entry.qualities):
        least, most = entry.qualities[0], entry.qualities[-1]
        raise UsageError(f"the codec {kind} needs a quality from {least} to {most}: {usual_name(kind)}, for instance")
    module, _, attribute = entry.where.partition(":")
    codec: Codec = getattr(importlib.import_module(module), attribute)(name)
    return codec


# --- what all codecs check --------------------------------------------------------------------------------------------


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
