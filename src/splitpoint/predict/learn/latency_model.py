"""`Latency`: what was learned of one device, and how it prices kernels. NumPy only, many kernels at once."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

import msgspec
import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from splitpoint.documents import Count, LongLabel, Milliseconds, Share
from splitpoint.machine import Machine
from splitpoint.predict.kernels.kernels import Kernel
from splitpoint.predict.learn.features import cells_of, columns_of, features_of, terms_of
from splitpoint.predict.learn.linear import cells_base
from splitpoint.predict.learn.trees import Forest
from splitpoint.profile.costs import Floats
from splitpoint.profile.profiles import Stat
from splitpoint.units import counted

#: Of the file format. A file with another number is refused with a sentence.
FORMAT = 1
#: How FLOPs were counted in what a file was trained on: the seed's way, or 2 per multiply-add (ours).
SEED, TWO_PER_MAC = "seed", "2mac"
#: Kernels shorter than this (ms) are below what an engine's timer tells apart: they judge no prediction.
TELLING_MS = 0.005
#: After so many ms most of what a pause cost is paid. Measured: 2,000 strips of 0.2 to 160 ms, each run after a pause;
#: what they take beside their kernels is 0.2 ms at half a millisecond, 0.6 at 8, 0.9 at 40.
COLD_MS = 4.0
#: A kernel that is e times outside of what was trained on has an interval wider by this share of its logarithm.
_WIDER = 1.0
#: Farther is all alike: nothing is known there.
_FARTHEST = 20.0
#: What files may hold: ms for a unit of work; how much a machine does in a ms; times that are not nothing; where a
#: feature's range ends.
_Amount = Annotated[float, Meta(ge=0, le=1e18)]
_Rate = Annotated[float, Meta(ge=1e-9, le=1e18)]
_LongMs = Annotated[float, Meta(ge=1e-6, le=86_400_000)]
_End = Annotated[float, Meta(ge=-1, le=1e30)]


@dataclass(frozen=True, slots=True)
class PredictedTimes:
    """Milliseconds of many kernels: medians, and the 10th and 90th percentile of what measuring would give."""

    median_ms: Floats
    low_ms: Floats
    high_ms: Floats

    def stats(self) -> list[Stat]:
        """One a kernel, with `count` 0: none was measured."""
        columns = (self.median_ms.tolist(), self.low_ms.tolist(), self.high_ms.tolist())
        return [Stat(*row, 0) for row in zip(*columns, strict=True)]


class LatencyScore(msgspec.Struct, frozen=True, kw_only=True):
    """How well rows kept apart were predicted: the mean error, and how many were within ±5, 10 and 20 % and in the
    interval, all as shares. `count` rows were long enough (`TELLING_MS`) to judge by; `covered` is of all.
    """

    mape: _Amount
    within5: Share
    within10: Share
    within20: Share
    covered: Share
    count: Count


class Roofline(msgspec.Struct, frozen=True, kw_only=True):
    """For what was never measured: the longer of computing and moving bytes, `fixed_ms` at least, and within a factor
    of `spread` four times in five.
    """

    flops_per_ms: _Rate
    bytes_per_ms: _Rate
    fixed_ms: Milliseconds = 0.0
    spread: Annotated[float, Meta(ge=1, le=1e3)] = 3.0

    def predict(self, kernels: Sequence[Kernel]) -> PredictedTimes:
        """Of kernels by FLOPs and bytes alone, however well they are written (Williams et al., Roofline, CACM 2009)."""
        computing = np.array([k.flops for k in kernels], np.float64) / self.flops_per_ms
        moved = np.array([k.in_nbytes + k.out_nbytes + k.weight_nbytes for k in kernels], np.float64)
        ms = np.maximum(np.maximum(computing, moved / self.bytes_per_ms), self.fixed_ms)
        return PredictedTimes(ms, ms / self.spread, ms * self.spread)

    def slowed(self, factor: float) -> Roofline:
        """The same where everything takes `factor` times as long."""
        return msgspec.structs.replace(
            self,
            flops_per_ms=self.flops_per_ms / factor,
            bytes_per_ms=self.bytes_per_ms / factor,
            fixed_ms=self.fixed_ms * factor,
        )


class Reference(msgspec.Struct, frozen=True, kw_only=True):
    """A random network that the device was calibrated with, and the ms that the file says it takes.

    `random_networks.random_network` makes it again of `family`, `seed` and `work`; it has `flops` FLOPs.
    Measured again, it shows how fast the device is by then.
    """

    family: LongLabel
    seed: Annotated[int, Meta(ge=0, le=1 << 31)]
    work: Annotated[float, Meta(ge=1, le=1e18)]
    flops: Annotated[int, Meta(ge=1, le=10**18)]
    ms: _LongMs

    @property
    def name(self) -> str:
        """A name that is the same wherever this network is measured."""
        return f"{self.family}-{self.seed}-{self.work:g}"


class KindModel(msgspec.Struct, frozen=True, kw_only=True):
    """What was learned of one kind: ``base(configuration) × exp(forest(features))``.

    `base` has ms for a unit of each term (`features.terms_of`), so magnitude needs no tree; the forest says how far
    from it a kernel is. The interval is ``median × exp(low…high × width)``, `width` a forest of its own.
    `linear` is the plain regression on the table's columns that all this is compared with (with the constant as "1").
    """

    method: LongLabel
    features: Annotated[tuple[str, ...], Meta(min_length=1)]
    base: dict[LongLabel, Annotated[dict[str, _Amount], Meta(min_length=1)]]
    """The common one is called "", others as their cell (`features.cells_of`)."""
    forest: Forest
    width: Forest
    low: Annotated[float, Meta(ge=-100, le=0)]
    high: Annotated[float, Meta(ge=0, le=100)]
    ranges: tuple[tuple[_End, _End], ...]
    """The least and the greatest value of each feature in training."""
    linear: dict[str, Annotated[float, Meta(ge=-1e18, le=1e18)]]
    score: LatencyScore
    rows: Count
    networks: Count = 0
    """In how many networks they were measured; 0 where the rows do not say."""
    shared: Annotated[float, Meta(ge=0, le=100)] = 0.0
    """What all kernels of this kind in one network are off together: a standard deviation, as a share, of networks kept
    apart; 0 where the rows do not say."""
    ops: tuple[Count, ...] = ()
    """Which operators (`kernel_kinds.OPS`) were measured; () where the kind has none, or an older file does not say."""

    def predict(self, kind: str, configs: Mapping[str, Floats]) -> PredictedTimes:
        """Of kernels with these columns (`kinds.KINDS`); a column that is left out has its default."""
        columns, again = _distinct(columns_of(kind, configs))
        features = features_of(kind, columns, self.features)
        base = cells_base(self.base, terms_of(kind, columns), cells_of(kind, columns))
        median = base * np.exp(self.forest.evaluate(features))
        width = np.exp(self.width.evaluate(features)) + _WIDER * _outside(features, self.ranges)
        low, high = median * np.exp(self.low * width), median * np.exp(self.high * width)
        return PredictedTimes(median[again], low[again], high[again])

    def linear_ms(self, kind: str, configs: Mapping[str, Floats]) -> Floats:
        """What plain linear regression says, in ms (it may be negative): the seed's own predictor, to compare with."""
        columns = columns_of(kind, configs)
        constant = np.full(len(next(iter(columns.values()))), self.linear["1"])
        terms = [k * columns[name] for name, k in self.linear.items() if name != "1"]
        return np.asarray(constant + np.sum(terms, axis=0))

    def slowed(self, factor: float) -> KindModel:
        """The same where every kernel takes `factor` times as long."""
        base = {cell: {term: ms * factor for term, ms in terms.items()} for cell, terms in self.base.items()}
        linear = {name: ms * factor for name, ms in self.linear.items()}
        return msgspec.structs.replace(self, base=base, linear=linear)


class Latency(msgspec.Struct, frozen=True, kw_only=True):
    """What kernels cost on one device with one engine and one number of threads.

    A segment takes ``scale × Σ kernels`` and up to `fixed_ms` beside, most of it paid in its first `cold_ms` (`cold`),
    within a factor of ``exp(±spread)`` four times in five.
    """

    format: int = FORMAT
    name: LongLabel
    created: LongLabel
    engine: LongLabel
    device: LongLabel
    threads: Annotated[int, Meta(ge=0, le=1 << 10)]
    machine: Machine | None = None
    versions: dict[LongLabel, LongLabel] = {}
    convention: LongLabel = TWO_PER_MAC
    note: LongLabel = ""
    kinds: dict[str, KindModel]
    fixed_ms: Annotated[float, Meta(ge=-86_400_000, le=86_400_000)] = 0.0
    cold_ms: _LongMs = 1.0
    scale: Annotated[float, Meta(ge=1e-3, le=1e3)] = 1.0
    spread: Annotated[float, Meta(ge=0, le=10)] = 0.0
    roofline: Roofline
    rows: Count
    """Measured rows in all."""
    reference: Annotated[tuple[Reference, ...], Meta(max_length=256)] = ()
    """What tells how fast the device is by now."""
    slowdown: Annotated[float, Meta(ge=1e-6, le=1e6)] = 1.0
    """What everything in here was multiplied by since the device was calibrated (`slowed`), and when."""
    refreshed: LongLabel = ""
    lacking: Annotated[tuple[LongLabel, ...], Meta(max_length=256)] = ()
    """Kinds of which too little was measured."""
    contradicted: Annotated[float, Meta(ge=0, le=1e6)] = 0.0
    """Where the device's own networks do not lie in their ranges four times in five: within which factor they do."""

    def too_little(self, kinds: Collection[str] | None = None) -> str:
        """A sentence on which of `kinds` (None: all) too little was measured, and what to do; "" if of none."""
        few = [k for k in self.lacking if k in self.kinds and (kinds is None or k in kinds)]
        said = []
        if few:
            sizes = ((n, "network") if (n := self.kinds[k].networks) else (self.kinds[k].rows, "row") for k in few)
            named = (f"{k} ({counted(*size)})" for k, size in zip(few, sizes, strict=True))
            said.append(f"too little was measured of {', '.join(named)}")
        if self.contradicted:
            said.append(
                f"of its own networks four in five lie within {self.contradicted:.2g} times what it says, no nearer"
            )
        if not said:
            return ""
        longer = "measure on with a longer budget (splitpoint calibrate-kernels --budget 5m -o FILE)"
        return f"{'; '.join(said)}: ranges are wide for that; {longer if self.machine else 'train on more rows'}"

    def knows(self, kernel: Kernel) -> bool:
        """Whether kernels of its kind were measured, and of its operator."""
        model = self.kinds.get(kernel.kind)
        return model is not None and (not model.ops or kernel.config["op"] in model.ops)

    def whole_ms(self, kernels_ms: float) -> float:
        """What a segment takes whose kernels add up to this."""
        return self.scale * kernels_ms + self.fixed_ms * float(cold(np.float64(kernels_ms), self.cold_ms))

    def slowed(self, factor: float) -> Latency:
        """The same device where everything takes `factor` times as long: at another clock, or with neighbours."""
        return msgspec.structs.replace(
            self,
            kinds={kind: model.slowed(factor) for kind, model in self.kinds.items()},
            fixed_ms=self.fixed_ms * factor,
            cold_ms=self.cold_ms * factor,
            roofline=self.roofline.slowed(factor),
            reference=tuple(msgspec.structs.replace(r, ms=r.ms * factor) for r in self.reference),
            slowdown=self.slowdown * factor,
        )

    def __str__(self) -> str:
        note = f" ({self.note})" if self.note else ""
        return f"{self.name}: {self.engine} on {self.device}, {len(self.kinds)} kinds from {self.rows} rows{note}"


def _distinct(columns: Mapping[str, Floats]) -> tuple[dict[str, Floats], NDArray[np.intp]]:
    """Each configuration once, and where each row's is: networks repeat their blocks."""
    rows = np.stack(list(columns.values()), axis=1)
    once, again = np.unique(rows, axis=0, return_inverse=True)
    return dict(zip(columns, once.T, strict=True)), again.ravel()


def cold(kernels_ms: Floats | np.float64, cold_ms: float = COLD_MS) -> Floats:
    """The share of `fixed_ms` that segments with kernels of so many ms pay, most of it in the first `cold_ms`.

    After a pause an engine runs slowly until caches and clocks are warm again; who is done before that pays less.
    """
    return np.asarray(-np.expm1(-np.asarray(kernels_ms) / cold_ms))


def _outside(features: Floats, ranges: tuple[tuple[float, float], ...]) -> Floats:
    """How far each row lies outside of `ranges`, in logarithms of its worst feature (many are 0 or near it)."""
    least, most = np.array(ranges).T + 2.0
    beyond = np.maximum((features + 2.0) / most, least / (features + 2.0))
    return np.asarray(np.log(np.clip(beyond, 1.0, _FARTHEST)).max(axis=1))
