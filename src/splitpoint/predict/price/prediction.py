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
from math import hypot, log

import numpy as np

from splitpoint.codecs import CODECS, usual_name
from splitpoint.errors import InputError
from splitpoint.graph import Graph
from splitpoint.machine import Machine
from splitpoint.models.model import Model
from splitpoint.predict.kernels.fusing import FREE
from splitpoint.predict.kernels.kernels import Kernel, by_kind, kernels_of
from splitpoint.predict.learn.latency_model import Latency, PredictedTimes
from splitpoint.predict.price.posterior import ANOTHER_TIME, TO_P90, Belief
from splitpoint.profile.costs import Floats
from splitpoint.profile.profiles import CodecCost, Profile, SegmentCost, Stat

#: How far whole models may be off (a factor of exp(±this) four times in five) where none was measured to learn it.
_UNKNOWN = 0.25
#: Of that error all kernels share this much (of its variance), those of one kind the rest, where a file does not say.
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


@dataclass(frozen=True, slots=True)
class KernelCost:
    """One kernel as priced: `ms` is what it adds to the whole; not `calibrated`, it was priced by FLOPs and bytes."""

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

    @property
    def too_little(self) -> str:
        """The sentence of `Latency.too_little` on the kinds in this model."""
        return self.latency.too_little({k.kind for k in self.kernels})

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
        corrected = f", corrected by {self.measured} measured times" if self.measured else ""
        notes = (
            f"predicted from {latency.name}{corrected}, never run there", latency.note, self.too_little,
            "codec times of another machine" if codecs is None else "",
        )  # fmt: skip
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
            note="; ".join(note for note in notes if note),
        )


def predict_latency(model: Model, latency: Latency, measured: Sequence[SegmentCost] = ()) -> Prediction:
    """What every kernel of `model` takes on the device of `latency`, and the whole of it, with intervals (10 to 90 %).

    Heads and tails of cuts of this model that were `measured` on that device correct it (`correct`). InputError for
    prefixes that the model does not have.
    """
    graph = model.graph
    kernels = kernels_of(model)
    times = kernel_times(kernels, latency, latency.scale)
    belief = _belief(graph, kernels, times, latency)
    last = len(belief.counts) - 1
    if wrong := [s.prefix for s in measured if not 0 <= s.prefix <= last]:
        raise InputError(f"a segment was measured at prefix {wrong[0]}, and {graph.name} has 0…{last}")
    corrected = belief.given(measured)
    stats = _stats(graph, kernels, times, None if corrected is belief else corrected)
    costs = tuple(
        KernelCost(
            kernel,
            graph.nodes[kernel.nodes[0]].layer,
            tuple(graph.nodes[i].op for i in kernel.nodes),
            stats[k],
            latency.knows(kernel),
        )
        for k, kernel in enumerate(kernels)
    )
    sides = sum((s.head is not None) + (s.tail is not None) for s in measured)
    return Prediction(graph, model.fingerprint, latency, corrected.heads()[-1], costs, corrected, sides)


def linear_ms(kernels: Sequence[Kernel], latency: Latency) -> Floats:
    """What plain linear regression on the tables' columns says of each kernel: the predictor to be better than."""
    ms = np.zeros(len(kernels))
    for kind, at, columns in by_kind(kernels):
        if kind in latency.kinds:
            ms[at] = latency.kinds[kind].linear_ms(kind, columns)
        else:
            ms[at] = latency.roofline.predict([kernels[k] for k in at]).median_ms
    return ms


def kernel_times(kernels: Sequence[Kernel], latency: Latency, scale: float = 1.0) -> PredictedTimes:
    """Each kernel by itself, by its kind or by FLOPs and bytes: `scale` times what the engine's own timer would say."""
    median, low, high = (np.zeros(len(kernels)) for _ in range(3))
    for kind, at, columns in by_kind(kernels):
        if kind in latency.kinds:
            times = latency.kinds[kind].predict(kind, columns)
            median[at], low[at], high[at] = times.median_ms, times.low_ms, times.high_ms
    if unknown := [k for k, kernel in enumerate(kernels) if not latency.knows(kernel)]:
        times = latency.roofline.predict([kernels[k] for k in unknown])
        median[unknown], low[unknown], high[unknown] = times.median_ms, times.low_ms, times.high_ms
    low, high = np.maximum(low, median / _WIDEST), np.minimum(high, median * _WIDEST)
    return PredictedTimes(scale * median, scale * low, scale * high)


# --- sums -------------------------------------------------------------------------------------------------------------


def _belief(graph: Graph, kernels: Sequence[Kernel], times: PredictedTimes, latency: Latency) -> Belief:
    """What is believed of the model's nodes before any of it was measured."""
    count = len(graph.nodes)
    edge, cloud, own, shared = (np.zeros(count) for _ in range(4))
    group = np.zeros(count, np.int64)
    names = {kind: k for k, kind in enumerate(dict.fromkeys(k.kind for k in kernels), 1)}
    spread = latency.spread or _UNKNOWN
    # A file that says what kinds have in common has the whole's spread beside it: it does not cancel out over kinds.
    common = 1.0 if any(m.networks for m in latency.kinds.values()) else _COMMON
    for k, kernel in enumerate(kernels):
        at = list(kernel.nodes)
        ms = float(times.median_ms[k])
        edge[at], cloud[at] = _apart(graph, kernel, ms, latency)
        group[at] = names[kernel.kind]
        if latency.knows(kernel):
            own[at] = log(times.high_ms[k] / times.low_ms[k]) / 2 / TO_P90 if times.low_ms[k] > 0 else 0.0
            learned = latency.kinds[kernel.kind]
            shared[at] = learned.shared if learned.networks else spread / TO_P90 * (1 - _COMMON) ** 0.5
        else:  # what is wrong with one of them is wrong with all
            shared[at] = log(latency.roofline.spread) / TO_P90
    flat = [i for step in graph.order for i in step]
    return Belief(
        edge=np.concatenate([[latency.fixed_ms], edge[flat]]),
        cloud=np.concatenate([[latency.fixed_ms], cloud[flat]]),
        counts=np.fromiter(accumulate((len(step) for step in graph.order), initial=0), np.int64),
        overall=hypot(spread / TO_P90 * common**0.5, ANOTHER_TIME),  # calibrations are of one time as well
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


def _stats(graph: Graph, kernels: Sequence[Kernel], times: PredictedTimes, corrected: Belief | None) -> list[Stat]:
    """Each kernel as its kind has it; once the belief is `corrected`, in the middle of what its nodes are."""
    if corrected is None:
        return times.stats()
    place = {i: k for k, i in enumerate((i for step in graph.order for i in step), 1)}
    deviations = corrected.deviations()
    stats = []
    for k, kernel in enumerate(kernels):
        at = [place[i] for i in kernel.nodes]
        before = float(corrected.edge[at].sum())
        factor = float((corrected.edge * corrected.factors)[at].sum()) / before if before > 0 else 1.0
        ms = float(times.median_ms[k]) * factor
        share = float(np.exp(TO_P90 * deviations[at].max() / factor))
        stats.append(Stat(ms, ms / share, ms * share, 0))
    return stats
