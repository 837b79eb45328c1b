"""A profile as a value: it loads from JSON without a model file or an engine."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from itertools import accumulate

import msgspec
import numpy as np

from splitpoint.errors import CutError, InputError
from splitpoint.graph import Cut, Graph
from splitpoint.machine import Machine
from splitpoint.profile.costs import NodeCosts, fit
from splitpoint.units import counted

#: Of the file. Another number is refused with a sentence.
FORMAT = 1


class Stat(msgspec.Struct, frozen=True, array_like=True):
    """Milliseconds of `count` runs: median, 10th and 90th percentile. `count` is 0 where it was not measured itself."""

    median: float
    p10: float
    p90: float
    count: int = 1

    def times(self, factor: float) -> Stat:
        """The same, `factor` times as long."""
        return Stat(self.median * factor, self.p10 * factor, self.p90 * factor, self.count)

    def __str__(self) -> str:
        return f"{self.median:.2f} ms ({self.p10:.2f}…{self.p90:.2f})"


#: Of a side with nothing to compute.
NOTHING = Stat(0.0, 0.0, 0.0, 0)


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
    """Power of the device: while it computes, while it sends or receives, while it waits. `source`: who says so."""

    compute: float
    tx: float
    idle: float
    source: str = "given"


class Profile(msgspec.Struct, frozen=True, kw_only=True, dict=True):
    """What every cut of one model costs on one machine. `nodes` are the engine's own kernel times in ms, in the order
    of ``graph.nodes`` (0 for copied ones): how time is shared out between two measured cuts.

    >>> print(profile.head(profile.graph.cut("pool1")))
    2.41 ms (2.28…2.65)
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

    # --- what a cut costs ---------------------------------------------------------------------------------------

    def head(self, what: Cut | int) -> Stat:
        """The head of a cut (or of a prefix, by its place in ``graph.prefixes()``) here: as measured, or modelled.

        A modelled one has `count` 0 and the relative spread of the measured cuts around it.
        """
        costs, cut = self.costs(), self._nodes_of(what)
        if not cut:
            return NOTHING
        found = self._measured.get(self._prefix_of(cut))
        if found is not None and found.head is not None:
            return found.head
        return self._modelled(len(cut), costs.edge_fixed + float(costs.edge[list(cut)].sum()), heads=True)

    def tail(self, what: Cut | int) -> Stat:
        """The tail of a cut here, like `head`."""
        costs, cut = self.costs(), self._nodes_of(what)
        rest = [i for i in self.graph.placed if i not in cut]
        if not rest:
            return NOTHING
        found = self._measured.get(self._prefix_of(cut))
        if found is not None and found.tail is not None:
            return found.tail
        return self._modelled(len(cut), costs.cloud_fixed + float(costs.cloud[rest].sum()), heads=False)

    def costs(self) -> NodeCosts:
        """A cost for every node on the device and on the server, whose sums are `head` and `tail` where measured
        (as far as those grow with the nodes); made once.
        """
        return self._costs

    @cached_property
    def _costs(self) -> NodeCosts:
        heads = {s.prefix: s.head.median for s in self.segments if s.head is not None}
        tails = {s.prefix: s.tail.median for s in self.segments if s.tail is not None}
        return fit(self.graph, heads, tails, self.whole.median, np.array(self.nodes, np.float64))

    @cached_property
    def _measured(self) -> Mapping[int, SegmentCost]:
        return {s.prefix: s for s in self.segments}

    @cached_property
    def _counts(self) -> tuple[int, ...]:
        """Placed nodes in each prefix."""
        return tuple(accumulate((len(step) for step in self.graph.order), initial=0))

    @cached_property
    def _place(self) -> Mapping[int, int]:
        return {count: k for k, count in enumerate(self._counts)}

    @cached_property
    def _flat(self) -> tuple[int, ...]:
        return tuple(i for step in self.graph.order for i in step)

    def _nodes_of(self, what: Cut | int) -> frozenset[int]:
        if isinstance(what, Cut):
            return frozenset(what.nodes)
        if not 0 <= what < len(self._counts):
            raise CutError(f"prefix {what} is not in 0…{len(self._counts) - 1}")
        return frozenset(self._flat[: self._counts[what]])

    def _prefix_of(self, cut: frozenset[int]) -> int:
        """The place of the prefix with just these nodes; −1 if the cut is none."""
        place = self._place.get(len(cut), -1)
        return place if place >= 0 and cut.issuperset(self._flat[: len(cut)]) else -1

    def _modelled(self, count: int, ms: float, *, heads: bool) -> Stat:
        """`ms` with the relative spread of the measured cuts before and after, by their distance in nodes."""
        stats = [(s.prefix, s.head if heads else s.tail) for s in sorted(self.segments, key=lambda s: s.prefix)]
        known = [(self._counts[k], s.p10 / s.median, s.p90 / s.median) for k, s in stats if s and s.median > 0]
        places, low, high = zip(*known, strict=True) if known else ((0,), (1.0,), (1.0,))
        down, up = float(np.interp(count, places, low)), float(np.interp(count, places, high))
        return Stat(ms, ms * down, ms * up, 0)

    def slowed(self, factor: float) -> Profile:
        """What a machine that computes `factor` times slower would measure, labelled as emulated. Its codecs are not
        slower: `lab.device.Stretched`, which emulates such a machine, slows nothing but the engine.
        """
        note = f"emulated: computes {factor:g}x slower"
        return msgspec.structs.replace(
            self,
            whole=self.whole.times(factor),
            segments=tuple(
                msgspec.structs.replace(s, head=s.head and s.head.times(factor), tail=s.tail and s.tail.times(factor))
                for s in self.segments
            ),
            nodes=tuple(ms * factor for ms in self.nodes),
            note=f"{self.note}; {note}" if self.note else note,
        )

    # --- whose it is --------------------------------------------------------------------------------------------

    @property
    def where(self) -> str:
        """Machine, engine and threads in words: what tells two profiles of one model apart."""
        threads = counted(self.threads, "thread")
        note = f" ({self.note})" if self.note else ""
        return f"{self.machine.processor}, {self.engine} on {self.device}, {threads}{note}"

    @property
    def measured(self) -> int:
        """How many cuts of the chain were measured."""
        return sum(self._chain_has(s.prefix) for s in self.segments)

    def _chain_has(self, prefix: int) -> bool:
        return self.graph.prefixes()[prefix].index is not None

    def require(self, fingerprint: str, name: str = "") -> None:
        """InputError unless this is a profile of the model with that fingerprint, called `name` in the message."""
        if self.fingerprint != fingerprint:
            raise InputError(
                f"this is a profile of {self.graph.name} {self.fingerprint[:12]}, not of {name or 'the model'} "
                f"{fingerprint[:12]}: make one with splitpoint profile"
            )

    def __str__(self) -> str:
        return f"{self.graph.name} {self.fingerprint[:12]} on {self.where}: whole {self.whole}"
