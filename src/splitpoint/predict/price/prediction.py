"""A model and a `Latency` → what each of its kernels takes, and the profile that planning is done with.

>>> from splitpoint.predict.learn.files import load_latency
>>> found = predict_latency(load("zoo:lenet5"), load_latency("neurosurgeon-edge"))
>>> print(found.whole)
0.4... ms (0.2...…0.8...)

Nothing is run, and no weights are read.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import log

import numpy as np

from splitpoint.codecs import CODECS, usual_name
from splitpoint.errors import InputError
from splitpoint.graph import Graph
from splitpoint.machine import Machine
from splitpoint.models.model import Model
from splitpoint.predict.kernels.fusing import FREE
from splitpoint.predict.kernels.kernels import Kernel, kernels_of
from splitpoint.predict.learn.latency_model import Latency, PredictedTimes
from splitpoint.predict.price.posterior import TO_P90, Belief, Floats
from splitpoint.predict.price.roofline import roofline_times
from splitpoint.profile.profiles import CodecCost, Profile, SegmentCost, Stat

#: How far whole models may be off (a factor of exp(±this) four times in five) where none was measured to learn it.
_UNKNOWN = 0.25
#: Of that error all kernels share this much (of its variance), those of one kind the rest.
_COMMON = 0.7
#: The part that every segment pays first is known this well (a standard deviation, as a share).
_FIXED = 0.3
#: Far outside of what was trained on an interval has no end; this factor each way says the same.
_WIDEST = 10.0
#: Kinds whose first node does the work; what is fused in behind it costs nothing until a cut sets it apart. Then it
#: takes at most this share of the kernel.
_LED = frozenset({"conv", "dw_conv", "group_conv", "linear", "matmul"})
_APART = 0.5

#: What codecs take, where the device's own were not measured.
CODEC_COSTS: Mapping[str, CodecCost] = {usual_name(kind): CodecCost(*entry.cost) for kind, entry in CODECS.items()}
_CODECS_NOTE = "codec times of another machine"


@dataclass(frozen=True, slots=True)
class KernelCost:
    """One kernel as priced. `ms` is what it adds to the whole model; `calibrated` is False where it was priced by its
    FLOPs and bytes. `layer` and `ops` are of its nodes.
    """

    kernel: Kernel
    layer: str
    ops: tuple[str, ...]
    ms: Stat
    calibrated: bool

    @property
    def kind(self) -> str:
        return self.kernel.kind


@dataclass(frozen=True, slots=True)
class Uncalibrated:
    """Kernels of one operator that no table had: `count` of them, with this share of the model's time."""

    op: str
    kind: str
    count: int
    share: float


@dataclass(frozen=True)
class Prediction:
    """What a model is predicted to take on the device that `latency` describes: `whole`, and its `kernels` in order.

    `belief` has the sums: heads and tails of every prefix. `measured` says how many heads and tails corrected it.
    """

    graph: Graph
    fingerprint: str
    latency: Latency
    whole: Stat
    kernels: tuple[KernelCost, ...]
    belief: Belief
    measured: int = 0

    @property
    def uncalibrated(self) -> tuple[Uncalibrated, ...]:
        """What was priced by FLOPs and bytes alone, the longest first."""
        times: dict[tuple[str, str], list[float]] = defaultdict(list)
        for k in self.kernels:
            if not k.calibrated:
                times[k.ops[0], k.kind].append(k.ms.median)
        total = sum(k.ms.median for k in self.kernels) or 1.0
        rows = [Uncalibrated(op, kind, len(ms), sum(ms) / total) for (op, kind), ms in times.items()]
        return tuple(sorted(rows, key=lambda u: -u.share))

    def profile(self, codecs: Mapping[str, CodecCost] | None = None) -> Profile:
        """The profile that planning takes: every prefix has a head and a tail with `count` 0, for none was measured.

        `codecs` are what codecs take on that device; without them, those of another machine, and the note says so.
        """
        belief, latency, graph = self.belief, self.latency, self.graph
        last = len(belief.counts) - 1
        segments = tuple(
            SegmentCost(k, head if k else None, tail if k < last else None)
            for k, (head, tail) in enumerate(zip(belief.heads(), belief.tails(), strict=True))
        )
        nodes = np.zeros(len(graph.nodes))
        nodes[[i for step in graph.order for i in step]] = (belief.edge * belief.factors)[1:]
        return Profile(
            fingerprint=self.fingerprint,
            graph=graph,
            engine=latency.engine,
            device=latency.device,
            threads=latency.threads,
            machine=latency.machine or Machine("", latency.name, 0, 0, "", ""),
            versions=latency.versions,
            created=latency.created,
            complete=False,
            whole=self.whole,
            segments=segments,
            nodes=tuple(nodes.tolist()),
            codecs=dict(CODEC_COSTS if codecs is None else codecs),
            note=self._note(own_codecs=codecs is not None),
        )

    def _note(self, *, own_codecs: bool) -> str:
        corrected = f", corrected by {self.measured} measured times" if self.measured else ""
        parts = [f"predicted from {self.latency.name}{corrected}, never run there"]
        parts += [self.latency.note] if self.latency.note else []
        return "; ".join(parts if own_codecs else [*parts, _CODECS_NOTE])


def predict_latency(model: Model, latency: Latency, measured: Sequence[SegmentCost] = ()) -> Prediction:
    """What every kernel of `model` takes on the device of `latency`, and the whole of it, with intervals (10 to 90 %).

    Heads and tails of cuts of this model that were `measured` on that device correct it (`correct`). InputError for
    prefixes that the model does not have.
    """
    graph = model.graph
    kernels = kernels_of(model)
    times = _times(kernels, latency)
    belief = _belief(graph, kernels, times, latency)
    last = len(belief.counts) - 1
    if wrong := [s.prefix for s in measured if not 0 <= s.prefix <= last]:
        raise InputError(f"a segment was measured at prefix {wrong[0]}, and {graph.name} has 0…{last}")
    corrected = belief.given(measured)
    stats = _alone(times) if corrected is belief else _corrected(graph, kernels, times, corrected)
    costs = tuple(
        KernelCost(
            kernel,
            graph.nodes[kernel.nodes[0]].layer,
            tuple(graph.nodes[i].op for i in kernel.nodes),
            stats[k],
            kernel.kind in latency.kinds,
        )
        for k, kernel in enumerate(kernels)
    )
    sides = sum((s.head is not None) + (s.tail is not None) for s in measured)
    return Prediction(graph, model.fingerprint, latency, corrected.whole(), costs, corrected, sides)


def linear_ms(kernels: Sequence[Kernel], latency: Latency) -> Floats:
    """What plain linear regression on the tables' columns says of each kernel: the predictor to be better than."""
    ms = np.zeros(len(kernels))
    for kind, at in _by_kind(kernels).items():
        if kind in latency.kinds:
            ms[at] = latency.kinds[kind].linear_ms(kind, _columns(kernels, at))
        else:
            ms[at] = roofline_times([kernels[k] for k in at], latency.roofline).median_ms
    return ms


# --- kernels ----------------------------------------------------------------------------------------------------------


def kernel_times(kernels: Sequence[Kernel], latency: Latency) -> PredictedTimes:
    """Each kernel by itself, as the engine's own timer would have it: by its kind, or by FLOPs and bytes."""
    median, low, high, outside = (np.zeros(len(kernels)) for _ in range(4))
    for kind, at in _by_kind(kernels).items():
        if kind in latency.kinds:
            once, again = _alike(kernels, at)
            times = latency.predict(kind, _columns(kernels, once))
        else:
            times, again = roofline_times([kernels[k] for k in at], latency.roofline), list(range(len(at)))
        median[at], low[at] = times.median_ms[again], times.low_ms[again]
        high[at], outside[at] = times.high_ms[again], times.outside[again]
    return PredictedTimes(median, np.maximum(low, median / _WIDEST), np.minimum(high, median * _WIDEST), outside)


def _times(kernels: Sequence[Kernel], latency: Latency) -> PredictedTimes:
    """What each kernel adds to the whole model."""
    times, scale = kernel_times(kernels, latency), latency.scale
    return PredictedTimes(scale * times.median_ms, scale * times.low_ms, scale * times.high_ms, times.outside)


def _by_kind(kernels: Sequence[Kernel]) -> dict[str, list[int]]:
    places: dict[str, list[int]] = defaultdict(list)
    for k, kernel in enumerate(kernels):
        places[kernel.kind].append(k)
    return places


def _alike(kernels: Sequence[Kernel], at: Sequence[int]) -> tuple[list[int], list[int]]:
    """One of each configuration among these kernels, and for each kernel which one: networks repeat their layers."""
    places: dict[tuple[float, ...], int] = {}
    once: list[int] = []
    again = []
    for k in at:
        key = tuple(kernels[k].config.values())
        if key not in places:
            places[key] = len(once)
            once.append(k)
        again.append(places[key])
    return once, again


def _columns(kernels: Sequence[Kernel], at: Sequence[int]) -> dict[str, Floats]:
    return {name: np.array([kernels[k].config[name] for k in at], np.float64) for name in kernels[at[0]].config}


# --- sums -------------------------------------------------------------------------------------------------------------


def _belief(graph: Graph, kernels: Sequence[Kernel], times: PredictedTimes, latency: Latency) -> Belief:
    """What is believed of the model's nodes before any of it was measured."""
    count = len(graph.nodes)
    edge, cloud, own, shared = (np.zeros(count) for _ in range(4))
    group = np.zeros(count, np.int64)
    names = {kind: k for k, kind in enumerate(dict.fromkeys(k.kind for k in kernels), 1)}
    spread = latency.spread or _UNKNOWN
    for k, kernel in enumerate(kernels):
        at = list(kernel.nodes)
        ms = float(times.median_ms[k])
        edge[at], cloud[at] = _apart(graph, kernel, ms, latency)
        group[at] = names[kernel.kind]
        if kernel.kind in latency.kinds:
            own[at] = log(times.high_ms[k] / times.low_ms[k]) / 2 / TO_P90 if times.low_ms[k] > 0 else 0.0
            shared[at] = spread / TO_P90 * (1 - _COMMON) ** 0.5
        else:  # what is wrong with one of them is wrong with all
            shared[at] = log(latency.roofline.spread) / TO_P90
    flat = [i for step in graph.order for i in step]
    return Belief(
        edge=np.concatenate([[latency.fixed_ms], edge[flat]]),
        cloud=np.concatenate([[latency.fixed_ms], cloud[flat]]),
        counts=np.fromiter(accumulate((len(step) for step in graph.order), initial=0), np.int64),
        overall=spread / TO_P90 * _COMMON**0.5,
        shared=np.concatenate([[0.0], shared[flat]]),
        own=np.concatenate([[_FIXED], own[flat]]),
        group=np.concatenate([[0], group[flat]]),
        factors=np.ones(len(flat) + 1),
        cold_ms=latency.cold_ms,
    )


def _apart(graph: Graph, kernel: Kernel, ms: float, latency: Latency) -> tuple[list[float], list[float]]:
    """A kernel's ms shared out among its nodes: in heads, and in tails.

    A cut behind a convolution leaves the activation that was fused into it to the server: the head is no shorter for
    it, and the tail has one more pass over its elements. So it is the first node that costs the head, and in a tail
    the others cost what moving their bytes takes.
    """
    if len(kernel.nodes) == 1:
        return [ms], [ms]
    line, nodes = latency.roofline, kernel.nodes
    if kernel.kind not in _LED:
        work = [_moved(graph, i) / line.bytes_per_ms + graph.nodes[i].flops / line.flops_per_ms for i in nodes]
        total = sum(work)
        shares = [ms * w / total if total > 0 else ms / len(work) for w in work]
        return shares, shares
    others = [_moved(graph, i) / line.bytes_per_ms for i in nodes[1:]]
    total = sum(others)
    fits = min(1.0, _APART * ms / total) if total > 0 else 1.0
    return [ms, *(0.0 for _ in others)], [ms - fits * total, *(fits * o for o in others)]


def _moved(graph: Graph, i: int) -> float:
    """Bytes that a node by itself reads and writes, nearly; 0 for what only renames."""
    node = graph.nodes[i]
    if node.op in FREE:
        return 0.0
    return 2.0 * sum(graph.tensors[t].nbytes for t in node.outputs if t in graph.tensors)


def _alone(times: PredictedTimes) -> list[Stat]:
    """Each kernel as its kind has it."""
    columns = (times.median_ms, times.low_ms, times.high_ms)
    return [Stat(ms, low, high, 0) for ms, low, high in zip(*(c.tolist() for c in columns), strict=True)]


def _corrected(graph: Graph, kernels: Sequence[Kernel], times: PredictedTimes, belief: Belief) -> list[Stat]:
    """Each kernel as it is believed now: in the middle of what its nodes are."""
    place = {i: k for k, i in enumerate((i for step in graph.order for i in step), 1)}
    deviations = belief.deviations()
    stats = []
    for k, kernel in enumerate(kernels):
        at = [place[i] for i in kernel.nodes]
        before = float(belief.edge[at].sum())
        factor = float((belief.edge * belief.factors)[at].sum()) / before if before > 0 else 1.0
        ms = float(times.median_ms[k]) * factor
        share = float(np.exp(TO_P90 * deviations[at].max() / factor))
        stats.append(Stat(ms, ms / share, ms * share, 0))
    return stats
