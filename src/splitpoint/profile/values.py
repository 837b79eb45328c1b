"""A profile as a value: it loads from JSON without a model file or an engine."""

from __future__ import annotations

import msgspec

from splitpoint.graph import Graph
from splitpoint.machine import Machine

#: Of the file. Another number is refused with a sentence.
FORMAT = 1


class Stat(msgspec.Struct, frozen=True, array_like=True):
    """Milliseconds of `count` runs: median, 10th and 90th percentile."""

    median: float
    p10: float
    p90: float
    count: int = 1


class SegmentCost(msgspec.Struct, frozen=True):
    """One cut as measured here: its head (this machine as the device) and its tail (this machine as the server).

    `prefix` is its place in ``Graph.prefixes()``. A side with nothing to compute is None. `head_nbytes` and
    `tail_nbytes` are memory the compiled half held.
    """

    prefix: int
    head: Stat | None = None
    tail: Stat | None = None
    head_nbytes: int = 0
    tail_nbytes: int = 0


class CodecCost(msgspec.Struct, frozen=True):
    """Time of a codec on this machine: `fixed_ms` a tensor and `ms_per_mb` (10⁶ bytes of the *decoded* tensor)."""

    encode_fixed_ms: float
    encode_ms_per_mb: float
    decode_fixed_ms: float
    decode_ms_per_mb: float


class Watts(msgspec.Struct, frozen=True):
    """Power of the device: while it computes, while it sends or receives, while it waits."""

    compute: float
    tx: float
    idle: float


class Profile(msgspec.Struct, frozen=True, kw_only=True):
    """What every cut of one model costs on one machine. `nodes` are the engine's own kernel times in ms, in the order
    of ``graph.nodes`` (0 for copied ones): how time is shared out between two measured cuts.
    """

    format: int = FORMAT
    fingerprint: str
    graph: Graph
    engine: str
    device: str
    threads: int
    machine: Machine
    versions: dict[str, str]
    created: str
    complete: bool
    """False if the time budget ended before every cut of the chain was measured."""
    whole: Stat
    segments: tuple[SegmentCost, ...]
    nodes: tuple[float, ...]
    codecs: dict[str, CodecCost]
    watts: Watts | None = None
    note: str = ""
    """Such as "emulated: 4x slower by a CPU quota"."""
