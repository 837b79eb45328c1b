"""A profile as a value: it loads from JSON without a model file or an engine."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from functools import cached_property
from itertools import accumulate
from typing import Annotated

import msgspec
import numpy as np

from splitpoint.documents import Bytes, Cores, Count, Label, LongLabel, Milliseconds, require_model
from splitpoint.errors import CutError
from splitpoint.graph import Cut, Graph
from splitpoint.machine import Machine
from splitpoint.profile.costs import Growing, NodeCosts, fit, likely
from splitpoint.units import counted

#: Of the file. Another number is refused with a sentence.
FORMAT = 1


class Stat(msgspec.Struct, frozen=True, array_like=True):
    """Milliseconds: the median of `count` undisturbed runs, and between what four of five later ones lie, disturbed or
    not, compiled anew on this machine at this speed.

    `count` is 0 where it was not measured itself.
    """

    median: Milliseconds
    p10: Milliseconds
    p90: Milliseconds
    count: Count = 1

    def times(self, factor: float) -> Stat:
        """The same, `factor` times as long."""
        return Stat(self.median * factor, self.p10 * factor, self.p90 * factor, self.count)

    def __str__(self) -> str:
        return f"{self.median:.2f} ms ({self.p10:.2f}…{self.p90:.2f})"


#: Of a side with nothing to compute.
NOTHING = Stat(0.0, 0.0, 0.0, 0)
#: Between the 10th and the 90th percentile of what is spread normally there are so many standard deviations.
_DEVIATIONS = 2.563
#: Shorter medians (ms) have no spread in ratio to them.
_LEAST_MS = 1e-6


class SegmentCost(msgspec.Struct, frozen=True):
    """One cut as measured here: its head (this machine as the device) and its tail (this machine as the server).

    `prefix` is its place in ``Graph.prefixes()``. A side with nothing to compute is None. `head_nbytes` and
    `tail_nbytes` are what the process grew by for the compiled half, at least its weights: for information only,
    because memory that an earlier half freed is used again.
    """

    prefix: int
    head: Stat | None = None
    tail: Stat | None = None
    head_nbytes: Bytes = 0
    tail_nbytes: Bytes = 0


class CodecCost(msgspec.Struct, frozen=True):
    """Time of a codec on this machine: `fixed_ms` a tensor and `ms_per_mb` (10⁶ bytes of the *decoded* tensor)."""

    encode_fixed_ms: Milliseconds
    encode_ms_per_mb: Milliseconds
    decode_fixed_ms: Milliseconds
    decode_ms_per_mb: Milliseconds


#: Watts; no device has a million.
_Power = Annotated[float, msgspec.Meta(ge=0, le=1e6)]


class Watts(msgspec.Struct, frozen=True):
    """Power of the device: while it computes, while it sends or receives, while it waits. `source`: who says so."""

    compute: _Power
    tx: _Power
    idle: _Power
    source: Label = "given"


class _Side:
    """The heads or the tails of all prefixes, and how far (ms) below and above its time four of five measurements lie
    where it was modelled.

    `growing` has the fit of each, and `off` is between what its errors lie (`likely`).
    """

    def __init__(
        self,
        known: Mapping[int, Stat],
        growing: Growing,
        off: tuple[float, float],
        counts: Sequence[int],
        *,
        tails: bool,
    ) -> None:
        fitted, below, above = (each[::-1] if tails else each for each in (growing.ms, *growing.doubts(*off)))
        measured = {k: known[k] for k in sorted(known) if known[k].median >= _LEAST_MS}
        low, high = np.ones(len(counts)), np.ones(len(counts))
        if measured:
            places = [counts[k] for k in measured]
            low = np.interp(counts, places, [s.p10 / s.median for s in measured.values()])
            high = np.interp(counts, places, [s.p90 / s.median for s in measured.values()])
        # A later measurement is off by what the model is, and by what runs are.
        self.below, self.above = np.hypot(below, fitted * (1 - low)), np.hypot(above, fitted * (high - 1))
        self.stats = [
            modelled(*each) for each in zip(*(x.tolist() for x in (fitted, self.below, self.above)), strict=True)
        ]
        spreads = spreads_of(measured)
        for k, stat in known.items():
            self.stats[k] = towards(stat, float(fitted[k]), spreads[k] * stat.median) if k in spreads else stat
        self.stats[-1 if tails else 0] = NOTHING


def modelled(ms: float, below: float, above: float) -> Stat:
    """What was not measured itself, and how far off that may be."""
    return Stat(ms, max(0.0, ms - below), ms + above, 0)


def spreads_of(measured: Mapping[int, Stat]) -> dict[int, float]:
    """Prefix → standard deviation of its runs as a share of their median: its own, or its neighbours' if larger."""
    places = sorted(measured)
    own = [(s.p90 - s.p10) / _DEVIATIONS / max(s.median, _LEAST_MS) for s in (measured[k] for k in places)]
    return {k: max(own[j], float(np.median(own[max(0, j - 1) : j + 2]))) for j, k in enumerate(places)}


def towards(stat: Stat, fitted: float, deviation: float) -> Stat:
    """`stat` moved towards `fitted`: not at all where its runs agree, nearly all the way where they lie further apart
    than the two.

    >>> towards(Stat(8.0, 7.0, 9.0), 10.0, 0.0).median, towards(Stat(8.0, 7.0, 9.0), 10.0, 2.0).median
    (8.0, 9.0)
    """
    distance = stat.median - fitted
    if distance == 0 or deviation == 0:
        return stat
    kept = distance**2 / (distance**2 + deviation**2)
    return stat.times((fitted + kept * distance) / stat.median)


class Profile(msgspec.Struct, frozen=True, kw_only=True, dict=True):
    """What every cut of one model costs on one machine. `nodes` are the engine's own kernel times in ms, in the order
    of ``graph.nodes`` (0 for copied ones): how time is shared out between two measured cuts.

    >>> print(profile.head(profile.graph.cut("pool1")))
    2.41 ms (2.28…2.65)
    """

    format: int = FORMAT
    fingerprint: Label
    graph: Graph
    engine: Label
    device: Label
    threads: Cores
    machine: Machine
    versions: dict[Label, Label]
    created: Label
    complete: bool
    """False if the time budget ended before every cut of the chain was measured."""
    whole: Stat
    segments: tuple[SegmentCost, ...]
    nodes: tuple[Milliseconds, ...]
    codecs: dict[Label, CodecCost]
    watts: Watts | None = None
    note: LongLabel = ""
    """Such as "emulated: 4x slower by a CPU quota"."""

    # --- what a cut costs ---------------------------------------------------------------------------------------

    def head(self, what: Cut | int) -> Stat:
        """The head of a cut (or of a prefix, by its place in ``graph.prefixes()``) here: as measured, or modelled.

        A measured one is moved towards what all cuts together say, the less the further apart they are in units of its
        spread: of many cuts that take about the same, the one that a measurement flatters would be chosen. A modelled
        one has `count` 0, and four of five measurements of it would lie between its p10 and p90: that is the spread of
        the measured cuts around it and the error of the model (`Growing`), together.
        """
        return self._stat(what, heads=True)

    def tail(self, what: Cut | int) -> Stat:
        """The tail of a cut here, like `head`."""
        return self._stat(what, heads=False)

    def _stat(self, what: Cut | int, *, heads: bool) -> Stat:
        side = self._sides[0 if heads else 1]
        if not isinstance(what, Cut):
            if not 0 <= what < len(self._counts):
                raise CutError(f"prefix {what} is not in 0…{len(self._counts) - 1}")
            return side.stats[what]
        place = bisect_left(self._counts, len(what.nodes))
        if what.nodes == self.graph.prefixes()[place].nodes:
            return side.stats[place]
        costs = self.costs()
        if heads:
            ms = costs.head_fixed + float(costs.head[list(what.nodes)].sum())
        else:
            ms = costs.tail_fixed + float(costs.tail[[i for i in self.graph.placed if i not in what.nodes]].sum())
        # Wherever its nodes lie, it has as many of them as a prefix, and is as little known.
        return modelled(ms, *(float(np.interp(len(what.nodes), self._counts, off)) for off in (side.below, side.above)))

    def costs(self) -> NodeCosts:
        """A cost for every node on the device and on the server, whose sums are `head` and `tail` where measured
        (as far as those grow with the nodes); made once.
        """
        return self._costs

    @cached_property
    def _costs(self) -> NodeCosts:
        heads = {s.prefix: s.head for s in self.segments if s.head is not None}
        tails = {s.prefix: s.tail for s in self.segments if s.tail is not None}
        return fit(
            self.graph,
            {k: stat.median for k, stat in heads.items()},
            {k: stat.median for k, stat in tails.items()},
            self.whole.median,
            np.array(self.nodes, np.float64),
            spreads_of(heads),
            spreads_of(tails),
        )

    @cached_property
    def _sides(self) -> tuple[_Side, _Side]:
        """Heads and tails. What errors of one have in common, those of the other have, too."""
        costs, steps = self.costs(), [list(step) for step in self.graph.order]
        last = len(steps)
        heads = {s.prefix: s.head for s in self.segments if s.head is not None and s.prefix}
        tails = {s.prefix: s.tail for s in self.segments if s.tail is not None and s.prefix < last}
        kernels = np.array([sum(self.nodes[i] for i in step) for step in steps], np.float64)
        ahead = Growing(
            costs.head_fixed + np.cumsum([0.0, *(costs.head[step].sum() for step in steps)]),
            kernels,
            {k: stat.median if stat.count else None for k, stat in heads.items()},
        )
        back = Growing(
            costs.tail_fixed + np.cumsum([0.0, *(costs.tail[step].sum() for step in reversed(steps))]),
            kernels[::-1],
            {last - k: stat.median if stat.count else None for k, stat in tails.items()},
        )
        off = likely(np.concatenate([ahead.errors(), back.errors()]))
        return (
            _Side(heads, ahead, off, self._counts, tails=False),
            _Side(tails, back, off, self._counts, tails=True),
        )

    @cached_property
    def _counts(self) -> tuple[int, ...]:
        """Placed nodes in each prefix."""
        return tuple(accumulate((len(step) for step in self.graph.order), initial=0))

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
        threads = f", {counted(self.threads, 'thread')}" if self.threads else ""  # else nobody said how many
        note = f" ({self.note})" if self.note else ""
        return f"{self.machine.processor}, {self.engine} on {self.device}{threads}{note}"

    @property
    def measured(self) -> int:
        """How many cuts of the chain were measured."""
        prefixes = self.graph.prefixes()
        return sum(prefixes[s.prefix].index is not None for s in self.segments)

    def require(self, fingerprint: str, name: str = "") -> None:
        """InputError unless this is a profile of the model with that fingerprint, called `name` in the message."""
        mine = self.graph.name, self.fingerprint
        require_model("this profile", mine, (name, fingerprint), "make one with splitpoint profile")

    def __str__(self) -> str:
        return f"{self.graph.name} {self.fingerprint[:12]} on {self.where}: whole {self.whole}"
