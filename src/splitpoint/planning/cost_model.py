"""Profiles, codecs and a link → the numbers of a `Problem`, and a placement of its steps → a cut.

What does not depend on the link is made once: a `Costing` prices a new link with a few sums over arrays.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from splitpoint.calibration.calibrations import Calibration, Row
from splitpoint.codecs import Codec, open_codec
from splitpoint.errors import InputError
from splitpoint.graph import Cut, Graph
from splitpoint.link import Link
from splitpoint.link.transfer import ANSWER_NBYTES, REQUEST_NBYTES
from splitpoint.planning.codec_costs import RAW, Pricing
from splitpoint.planning.constraints import over_budget
from splitpoint.planning.frame_bytes import frame_entry
from splitpoint.planning.objectives import Weights, weights_of
from splitpoint.planning.plans import Crossing
from splitpoint.planning.solve.problem import Bools, Floats, Ints, Problem
from splitpoint.profile.profiles import Profile
from splitpoint.tensors import TensorSpec

#: Objectives that many placements share the least value of, and what of it counts as the same (bytes, ms).
_TIES: Mapping[str, float] = {"bytes": 0.5, "server-time": 0.5e-6}

#: Operators behind which an image still shows what it showed: moved, retyped, scaled, thinned out, element by element.
#: Not those that mix channels or places by what was learnt (Conv, MatMul, Gemm, attention).
_SHOWS = frozenset({
    "Abs", "Add", "AveragePool", "BatchNormalization", "Cast", "CastLike", "Celu", "CenterCropPad", "Clip",
    "Concat", "DepthToSpace", "DequantizeLinear", "Div", "Elu", "Erf", "Exp", "Expand", "Flatten", "Gather",
    "GatherElements", "GatherND", "Gelu", "HardSigmoid", "HardSwish", "Identity", "InstanceNormalization",
    "LayerNormalization", "LeakyRelu", "Log", "LpNormalization", "Max", "MaxPool", "MeanVarianceNormalization",
    "Min", "Mish", "Mul", "Neg", "Pad", "Pow", "PRelu", "QuantizeLinear", "Reciprocal", "Relu", "Reshape", "Resize",
    "Selu", "Sigmoid", "Slice", "Softplus", "Softsign", "SpaceToDepth", "Split", "Sqrt", "Squeeze", "Sub", "Sum",
    "Tanh", "Tile", "Transpose", "Unsqueeze", "Upsample", "Where",
})  # fmt: skip


class Costing:
    """What every placement of a graph's steps costs, for any link.

    >>> costing = Costing(graph, edge, cloud, codecs=("raw", "int8"))
    >>> problem = costing.problem(PRESETS["4g"])
    >>> cut = costing.cut(least(problem).on_edge)

    `codecs` are those that tensors may travel with; `raw` always may. With `max_drop` (a share of top-1 agreement) a
    codec that is not exact is used for a tensor only where `calibration` shows it to keep within that, in cuts where
    the tensor crosses alone. Where a calibration has measured a codec's bytes, these count. `keep_input_local` forbids
    the model's input to cross, and all tensors that still show it (see `input_like`).

    `tensors` are those that may cross, in the order of the problem's; `codecs` the codecs' names, raw first.
    InputError for profiles of another graph, or without times for a codec.
    """

    def __init__(
        self,
        graph: Graph,
        edge: Profile,
        cloud: Profile,
        *,
        codecs: Sequence[str] = (RAW,),
        calibration: Calibration | None = None,
        max_drop: float | None = None,
        keep_input_local: bool = False,
    ) -> None:
        if edge.fingerprint != cloud.fingerprint:
            raise InputError(
                f"the profiles are of two models: the device's of {edge.graph.name} ({edge.fingerprint[:12]}), the "
                f"server's of {cloud.graph.name} ({cloud.fingerprint[:12]})"
            )
        self.graph, self.edge, self.cloud = graph, edge, cloud
        self.codecs: tuple[str, ...] = tuple(dict.fromkeys((RAW, *codecs)))
        self._wiring = _Wiring.of(graph)
        self.tensors: tuple[TensorSpec, ...] = self._wiring.tensors
        self._head, self._tail = (self._steps(p, s) for p, s in ((edge, "device"), (cloud, "server")))
        self._local = np.zeros(len(self.tensors), bool)
        if keep_input_local:
            shown = input_like(graph)
            self._local = np.array([t.name in shown for t in self.tensors], bool)
        self._price([open_codec(c) for c in self.codecs], calibration, max_drop)

    def _steps(self, profile: Profile, side: str) -> Floats:
        """What each step costs on one side, by its profile."""
        costs = profile.costs()
        found = costs.edge if side == "device" else costs.cloud
        if len(found) != len(self.graph.nodes):
            raise InputError(
                f"the {side}'s profile has {len(found)} nodes and {self.graph.name} has {len(self.graph.nodes)}: it is "
                "of another model, or of another version of it"
            )
        steps = np.bincount(self._wiring.owner, found[self._wiring.nodes], len(self.graph.order))
        return steps.astype(np.float64)

    def _price(self, codecs: Sequence[Codec], calibration: Calibration | None, max_drop: float | None) -> None:
        """Bytes and milliseconds of every tensor with every codec (float64[tensors, codecs]), where `allowed`."""
        shape = (len(self.tensors), len(codecs))
        decoded = np.array([t.nbytes for t in self.tensors], np.float64)
        self.allowed, self.nbytes, self._entries = np.zeros(shape, bool), np.zeros(shape), np.zeros(shape)
        self.encode_ms, self.decode_ms = np.zeros(shape), np.zeros(shape)
        known, pricing = _Calibrated.of(self.graph, calibration), Pricing(self.edge, self.cloud)
        for c, codec in enumerate(codecs):
            ours, theirs = pricing.device(codec.name), pricing.server(codec.name)
            self.encode_ms[:, c] = ours.encode_fixed_ms + ours.encode_ms_per_mb * decoded / 1e6
            self.decode_ms[:, c] = theirs.decode_fixed_ms + theirs.decode_ms_per_mb * decoded / 1e6
            for t, spec in enumerate(self.tensors):
                if codec.accepts(spec) and (codec.exact or known.allows(spec.name, codec.name, max_drop)):
                    nbytes = known.nbytes.get((spec.name, codec.name), codec.nbytes(spec))
                    self.allowed[t, c], self.nbytes[t, c] = True, nbytes
                    self._entries[t, c] = frame_entry(spec, codec.name, nbytes)
        self.sized: Bools = np.array([codec.sized for codec in codecs])

    # --- a link -------------------------------------------------------------------------------------------------

    def problem(self, link: Link, objective: str = "latency", *, most: float = np.inf) -> Problem:
        """The problem in the objective's unit: ms (latency, server-time), mJ (energy) or bytes.

        Of placements with the same bytes or server time the one of least latency is the best: latency counts
        there, too, with a weight so small that all of it is less than a byte or a nanosecond. For throughput: the
        milliseconds that keep the device, the link (codecs included) and the server busy; the round trip does not.
        UsageError for an unknown objective, and for energy if the device's profile has no watts.

        For throughput a tensor has the least that any of its codecs takes of each stage, so that no placement with any
        choice of codecs is below its value here. A codec that alone takes more than `most` ms of a stage is left out:
        where a placement of that value is known, it is in none that is better.
        """
        weights = self._weights(link, objective)
        w, up, down = weights, *_byte_costs(link, weights)
        stream = objective == "throughput"
        if stream:
            encode, crossing, decode = self._stage_costs(link, most)
        else:
            crossing = self._tensor_costs(link, weights).min(axis=1)
            encode = decode = np.zeros(len(self.tensors))
        crossing[self._local] = np.inf
        own = w.tail * self.cloud.costs().cloud_fixed
        around = w.rtt * link.rtt_ms + up * REQUEST_NBYTES + down * ANSWER_NBYTES
        wiring = self._wiring
        return Problem(
            edge=w.edge * self._head,
            cloud=w.tail * self._tail,
            before=wiring.before,
            after=wiring.after,
            maker=wiring.maker,
            link=crossing,
            first=wiring.first,
            users=wiring.users,
            down=down * wiring.down,
            edge_fixed=w.edge * self.edge.costs().edge_fixed,
            cloud_fixed=around if stream else own + around,
            encode=encode,
            decode=decode,
            server_fixed=own if stream else 0.0,
        )

    def chosen(self, link: Link, objective: str = "latency") -> Mapping[str, str]:
        """The codec of every tensor that may cross, by its name: the cheapest on this link."""
        best = self._choice(link, objective)
        return {t.name: self.codecs[c] for t, c in zip(self.tensors, best.tolist(), strict=True)}

    def crossing(self, cut: Cut, link: Link, objective: str = "latency") -> tuple[Crossing, ...]:
        """What crosses at `cut`, as it travels: each tensor with its cheapest codec on this link."""
        best = self._choice(link, objective)
        made = []
        for spec in cut.crossing:
            t = self._wiring.place[spec.name]
            c = int(best[t])
            made.append(Crossing(spec.name, self.codecs[c], int(self.nbytes[t, c]), bool(self.sized[c])))
        return tuple(made)

    def _choice(self, link: Link, objective: str) -> Ints:
        # The first of equals: raw before codecs that gain nothing.
        best: Ints = self._tensor_costs(link, self._weights(link, objective)).argmin(axis=1).astype(np.int32)
        return best

    def _tensor_costs(self, link: Link, weights: Weights) -> Floats:
        """float64[tensors, codecs]: what each crossing costs."""
        up, _ = _byte_costs(link, weights)
        bytes_up = self.nbytes + self._entries
        costs: Floats = weights.encode * self.encode_ms + up * bytes_up + weights.decode * self.decode_ms
        return np.where(self.allowed, costs, np.inf)

    def _stage_costs(self, link: Link, most: float) -> tuple[Floats, Floats, Floats]:
        """The least that a tensor keeps the device, the link and the server busy, over its codecs (float64[tensors]).

        inf on the link for a tensor that no codec brings across within `most`.
        """
        up, _ = _byte_costs(link, weights_of("throughput", None))
        parts = np.stack([self.encode_ms, up * (self.nbytes + self._entries), self.decode_ms])
        usable = self.allowed & (parts <= most).all(axis=0)
        device, network, server = np.where(usable, parts, np.inf).min(axis=2)
        never = np.isinf(network)
        return np.where(never, 0.0, device), network, np.where(never, 0.0, server)

    def _weights(self, link: Link, objective: str) -> Weights:
        weights = weights_of(objective, self.edge.watts)
        if objective == "throughput":
            return _sum(weights, Weights(rtt=-weights.rtt), 1.0)
        if objective not in _TIES:
            return weights
        latency = weights_of("latency", None)
        up, down = _byte_costs(link, latency)
        raw = up * (self.nbytes[:, 0] + self._entries[:, 0]).sum() + down * self._wiring.down.sum()
        fixed = self.edge.costs().edge_fixed + self.cloud.costs().cloud_fixed + link.rtt_ms
        coded = (self.encode_ms + self.decode_ms).max(axis=1).sum()
        most = self._head.sum() + self._tail.sum() + raw + coded + fixed + up * REQUEST_NBYTES + down * ANSWER_NBYTES
        return _sum(weights, latency, _TIES[objective] / max(1.0, most))

    # --- placements ---------------------------------------------------------------------------------------------

    def cut(self, on_edge: Bools) -> Cut:
        """The cut with these steps (bool[steps]) on the device; `prefix:…` or the layer's name where it has one."""
        chosen = self._wiring.nodes[on_edge[self._wiring.owner]].tolist()
        return self.graph.cut_of(chosen)

    def on_edge(self, nodes: Iterable[int]) -> Bools:
        """bool[steps]: the steps that hold these nodes of the graph, such as ``cut.nodes``."""
        found = np.zeros(len(self.graph.order), bool)
        found[[self._wiring.step[i] for i in nodes]] = True
        return found


@dataclass(frozen=True)
class _Wiring:
    """A graph as the arrays of a `Problem`, without costs.

    `nodes` are the placed nodes step by step, and `owner` their steps; `step` is the same as a mapping. `down`
    (float64[steps]) is bytes that come back if a step is on the server, `place` a tensor's index by its name.
    """

    nodes: Ints
    owner: Ints
    step: Mapping[int, int]
    before: Ints
    after: Ints
    tensors: tuple[TensorSpec, ...]
    place: Mapping[str, int]
    maker: Ints
    first: Ints
    users: Ints
    down: Floats

    @classmethod
    def of(cls, graph: Graph) -> _Wiring:
        step = {i: k for k, members in enumerate(graph.order) for i in members}
        pairs = {(step[m], step[i]) for i in step for m in graph.makers(i)}
        users = {t: {step[i] for i in found} for t, found in graph.consumers.items()}
        down = np.zeros(len(graph.order))
        for out in graph.outputs:
            values, made_by = graph.answer(out.name)
            behind = sorted({step[i] for i in made_by})
            if not behind:
                continue  # a copy of an input: the device has it
            spec = graph.tensors[out.name]
            down[behind[-1]] += spec.nbytes + frame_entry(spec, RAW, spec.nbytes)
            # A copied node may join several tensors to one output. It is then made where the last of them is, and
            # the others must be on the device, too, or travel: they are there when the last one is.
            pairs.update((k, behind[-1]) for k in behind[:-1])
            for t in values:
                users.setdefault(t, set()).add(behind[-1])
        pairs = {(a, b) for a, b in pairs if a != b}
        makers = {t: step[graph.producer[t]] if t in graph.producer else -1 for t in users}
        # A tensor whose users are all in its own step never crosses.
        names = [t for t, found in users.items() if found - {makers[t]}]
        wanted = [sorted(users[t] - {makers[t]}) for t in names]
        before, after = np.array(sorted(pairs), np.int32).reshape(-1, 2).T
        return cls(
            nodes=np.array([i for members in graph.order for i in members], np.int32),
            owner=np.repeat(np.arange(len(graph.order), dtype=np.int32), [len(m) for m in graph.order]),
            step=step,
            before=before,
            after=after,
            tensors=tuple(graph.tensors[t] for t in names),
            place={t: k for k, t in enumerate(names)},
            maker=np.array([makers[t] for t in names], np.int32),
            first=np.cumsum([0, *(len(w) for w in wanted)]).astype(np.int32),
            users=np.array([k for w in wanted for k in w], np.int32),
            down=down,
        )


@dataclass(frozen=True)
class _Calibrated:
    """What a calibration says of tensors, by (tensor, codec): bytes, and the rows in which they cross alone."""

    nbytes: Mapping[tuple[str, str], int]
    alone: Mapping[tuple[str, str], Sequence[Row]]

    @classmethod
    def of(cls, graph: Graph, calibration: Calibration | None) -> _Calibrated:
        sizes: dict[tuple[str, str], list[int]] = {}
        alone: dict[tuple[str, str], list[Row]] = {}
        for row, spec, nbytes in _crossings(graph, calibration) if calibration else ():
            sizes.setdefault((spec.name, row.codec), []).append(nbytes)
            if len(row.nbytes) == 1:
                alone.setdefault((spec.name, row.codec), []).append(row)
        return cls({key: int(np.median(found)) for key, found in sizes.items()}, alone)

    def allows(self, tensor: str, codec: str, max_drop: float | None) -> bool:
        """Whether an inexact codec keeps within `max_drop` for this tensor: shown, not supposed."""
        rows = self.alone.get((tensor, codec), ())
        return max_drop is None or (bool(rows) and not any(over_budget(r.quality, max_drop) for r in rows))


def _crossings(graph: Graph, calibration: Calibration) -> Iterator[tuple[Row, TensorSpec, int]]:
    """Every row's tensors that its codec encoded, with the bytes measured."""
    cuts = graph.prefixes()
    for row in calibration.rows:
        if not 0 <= row.prefix < len(cuts) or len(cuts[row.prefix].crossing) != len(row.nbytes):
            raise InputError(
                f"the calibration of {calibration.model} has a row for prefix {row.prefix} that does not fit "
                f"{graph.name}: it is of another model"
            )
        codec = open_codec(row.codec)
        for spec, nbytes in zip(cuts[row.prefix].crossing, row.nbytes, strict=True):
            if codec.accepts(spec):
                yield row, spec, nbytes


def input_like(graph: Graph) -> frozenset[str]:
    """The model's inputs and the tensors that still show them: made from nothing else, element by element.

    A normalised, resized or quantised image is still the image, and so are its colour channels side by side or
    the embeddings of its words, each looked up by itself. What an operator mixed with learnt weights is not.
    """
    shown = {t.name for t in graph.inputs}
    for i in graph.placed:
        sources = graph.sources(i)
        if sources and graph.nodes[i].op in _SHOWS and all(t in shown for t in sources):
            shown.update(graph.nodes[i].outputs)
    return frozenset(shown)


def _byte_costs(link: Link, weights: Weights) -> tuple[float, float]:
    """What a byte up and a byte down cost."""
    return weights.up * 8e-3 / link.up_mbps + weights.byte, weights.down * 8e-3 / link.down_mbps + weights.byte


def _sum(a: Weights, b: Weights, share: float) -> Weights:
    """`a` and a share of `b`."""
    return Weights(*(getattr(a, name) + share * getattr(b, name) for name in Weights.__slots__))
