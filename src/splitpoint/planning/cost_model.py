"""What a placement costs: milliseconds of every host, milliseconds and bytes of every hop between them.

    costs = CostModel(graph, (Host("device", edge), Host("server", cloud)), codecs=("raw", "int8"))
    parts = costs.parts([cut])                                  # known for every link and every codec
    work = costs.work(parts, [[costs.coded(0, t, "int8") for t in cut.crossing]])
    total_ms = work.value([link], weights_of("latency", costs.hosts))

`hosts` are in the order a request passes them, the device first; hop j is the link between host j and the next one.
A placement is a cut for each hop: what is before hop j runs on the hosts up to j. The same functions price one
placement (floats) and all topological prefixes with all codecs at once (arrays); the exact search takes its numbers
from the same tables (`placement_search`).

Every spread is in here. Of computing it is what four of five later runs lie in (`Stat`); of the network the jitter,
late only, and ±5 % of the transfer where the link varies; of codecs ±25 %, and as much of bytes that are estimated.
Independent parts add up as the root of their squares.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Generic, TypeVar

import numpy as np

from splitpoint.calibration.calibrations import Calibration, Quality
from splitpoint.codecs import open_priced
from splitpoint.errors import InputError
from splitpoint.graph import Cut, Graph
from splitpoint.link import Link
from splitpoint.planning.constraints import Constraints
from splitpoint.planning.frame_bytes import REQUEST_NBYTES, VECTOR_NBYTES, answer_nbytes, frame_entry
from splitpoint.planning.graph_steps import GraphSteps
from splitpoint.planning.hosts import RAW, Host
from splitpoint.planning.objectives import ObjectiveWeights
from splitpoint.planning.solve.problem import Bools, Floats
from splitpoint.profile.profiles import Stat
from splitpoint.tensors import TensorSpec

#: Codecs are timed with made-up tensors of two sizes.
CODEC_SHARE = 0.25
#: Bytes of codecs that depend on the values (JPEG, zstd), where no calibration has measured them.
BYTES_SHARE = 0.25
#: The codec by which a machine is compared with the one that calibrated.
_COMPARED = "int8"
#: The rate of a link that varies at all, beside its jitter; of one that is given as exact numbers nothing.
_RATE_SHARE = 0.05

#: One placement, or many: float64 of one shape, or of shapes that broadcast.
N = TypeVar("N", float, Floats)


@dataclass(frozen=True)
class HostWork(Generic[N]):
    """Milliseconds of one host: `compute` is the median, `early` and `late` how far p10 and p90 lie from it."""

    compute: N
    early: N
    late: N
    decode: N
    encode: N

    @cached_property
    def ms(self) -> N:
        """How long the host is busy, on any link."""
        return self.compute + self.decode + self.encode


@dataclass(frozen=True)
class HopWork(Generic[N]):
    """Bytes of one hop, frames included. `guessed` of those `up` are estimated; `used` is 1 if anything crosses, and
    else 0: no round trip is waited for."""

    used: N
    up: N
    guessed: N
    down: N

    def ms(self, link: Link) -> N:
        """How long the link is busy, both ways; the round trip keeps nobody busy."""
        return link.up_ms(1) * self.up + link.down_ms(1) * self.down


@dataclass(frozen=True)
class RequestWork(Generic[N]):
    """What a request gives each host and each hop to do."""

    hosts: tuple[HostWork[N], ...]
    hops: tuple[HopWork[N], ...]

    def busy(self, links: Sequence[Link]) -> list[N]:
        """Milliseconds for which each host is busy, then each hop."""
        return [h.ms for h in self.hosts] + [hop.ms(link) for hop, link in zip(self.hops, links, strict=True)]

    @cached_property
    def hosts_above(self) -> N:
        """The squares of how far above their medians the hosts' times may be."""
        first, *others = (stage.above for host in self.hosts for stage in host_delays(host))
        for above in others:
            first = first + above
        return first

    def value(self, links: Sequence[Link], weights: ObjectiveWeights) -> N:
        """The weighted sum of all its parts."""
        total = weights.hosts[0] * self.hosts[0].ms
        for host, weight in zip(self.hosts[1:], weights.hosts[1:], strict=True):
            total = total + weight * host.ms
        for hop, link, transfer, trip in zip(self.hops, links, weights.transfers, weights.trips, strict=True):
            beside = trip * link.beside_ms * hop.used
            total = total + transfer * hop.ms(link) + beside + weights.byte * (hop.up + hop.down)
        return total


@dataclass(frozen=True)
class Delay(Generic[N]):
    """One stage of a request: its milliseconds, and the *squares* of how far below and above them it may be."""

    ms: N
    below: N
    above: N


def host_delays(work: HostWork[N]) -> tuple[Delay[N], Delay[N]]:
    """(computing with the decoding of what comes in, encoding what goes on)."""
    codecs = (CODEC_SHARE * work.decode) ** 2, (CODEC_SHARE * work.encode) ** 2
    return (
        Delay(work.decode + work.compute, work.early**2 + codecs[0], work.late**2 + codecs[0]),
        Delay(work.encode, codecs[1], codecs[1]),
    )


def hop_delays(work: HopWork[N], link: Link) -> tuple[Delay[N], Delay[N]]:
    """(the way of what crosses, the way of the answer), each with half of what is beside bytes; it may be late."""
    # A link with jitter was measured; one without was made up, and is exact.
    rate = _RATE_SHARE if link.jitter_ms > 0 else 0.0
    half, late = work.used * (link.beside_ms / 2), work.used * (link.jitter_ms**2 / 2)
    up, down = link.up_ms(1) * work.up, link.down_ms(1) * work.down
    up_off = (rate * up) ** 2 + (BYTES_SHARE * link.up_ms(1) * work.guessed) ** 2
    down_off = (rate * down) ** 2
    return Delay(half + up, up_off, up_off + late), Delay(half + down, down_off, down_off + late)


def high(work: RequestWork[N], links: Sequence[Link], latency: N) -> N:
    """What nine requests in ten are answered by, where `latency` is the sum of the medians."""
    squares = work.hosts_above
    for hop, link in zip(work.hops, links, strict=True):
        up, down = hop_delays(hop, link)
        squares = squares + up.above + down.above
    root: N = squares**0.5
    return latency + root


@dataclass(frozen=True, slots=True)
class Coded:
    """A tensor as it crosses a hop: its bytes, those of its entry in the frame's header, milliseconds at both ends.

    `sized` is False where `nbytes` is an estimate.
    """

    codec: str
    nbytes: int
    entry: int
    sized: bool
    encode_ms: float
    decode_ms: float


@dataclass(frozen=True)
class TensorTable:
    """Every tensor that may cross a hop with every codec: float64[tensors, codecs].

    `nbytes` includes the entry in the frame's header. Where `accepts` is False the numbers are those of raw, as which
    such a tensor then travels.
    """

    accepts: Bools
    nbytes: Floats
    guessed: Floats
    encode_ms: Floats
    decode_ms: Floats


@dataclass(frozen=True)
class PlacedParts:
    """What a placement costs with any codecs: computing on each host; for each hop whether it is used, bytes of the
    request's frame without its tensors, and bytes of the answer's frame."""

    computing: tuple[Stat, ...]
    used: tuple[bool, ...]
    frame_nbytes: tuple[int, ...]
    down_nbytes: tuple[int, ...]


class Calibrated:
    """What a calibration says of the tensors of `graph`: their bytes with a codec, and how good the answer then is.

    `nbytes` are medians by (tensor, codec); `times` the milliseconds of encoding and decoding it there, on the machine
    that calibrated; `codecs` those that were calibrated anywhere; `most` the bytes of all that crosses with a codec,
    of the input that took the most, by the tensors' names. InputError if it is of another model.
    """

    def __init__(self, graph: Graph, calibration: Calibration | None) -> None:
        self.nbytes: dict[tuple[str, str], int] = {}
        self.times: dict[tuple[str, str], tuple[float, float]] = {}
        self.codecs: tuple[str, ...] = ()
        self.most: dict[tuple[tuple[str, ...], str], int] = {}
        self._alone: dict[tuple[str, str], list[Quality]] = {}
        self._together: dict[tuple[tuple[str, ...], str], Quality] = {}
        if calibration is None:
            return
        cuts = graph.prefixes()
        sizes: dict[tuple[str, str], list[int]] = {}
        for row in calibration.rows:
            if not 0 <= row.prefix < len(cuts) or len(cuts[row.prefix].crossing) != len(row.nbytes):
                raise InputError(
                    f"the calibration of {calibration.model} has a row for prefix {row.prefix} that does not fit "
                    f"{graph.name}: it is of another model"
                )
            cut, codec = cuts[row.prefix], open_priced(row.codec)
            # What crosses and how decides the answer, not which nodes were left on which side of it.
            self._together[_names(cut), row.codec] = row.quality
            self.most[_names(cut), row.codec] = row.most
            for spec, nbytes in zip(cut.crossing, row.nbytes, strict=True):
                if codec.accepts(spec):
                    sizes.setdefault((spec.name, row.codec), []).append(nbytes)
                    if len(row.nbytes) == 1:
                        self._alone.setdefault((spec.name, row.codec), []).append(row.quality)
                        if row.encode_ms and row.decode_ms:
                            self.times[spec.name, row.codec] = row.encode_ms, row.decode_ms
        self.nbytes = {key: int(np.median(each)) for key, each in sizes.items()}
        self.codecs = tuple(dict.fromkeys(r.codec for r in calibration.rows))

    def quality(self, cut: Cut, codec: str) -> Quality | None:
        """How good the answer is with this codec for all that crosses at `cut`; None if that was not measured."""
        return self._together.get((_names(cut), codec))

    def largest(self, cut: Cut, codec: str) -> int | None:
        """The most bytes that all that crosses at `cut` took with this codec; None if that was not measured."""
        return self.most.get((_names(cut), codec))

    def allows(self, tensor: str, codec: str, limits: Constraints) -> bool:
        """Whether an inexact codec keeps the answers as `limits` ask for, for this tensor: shown, not supposed."""
        known = self._alone.get((tensor, codec), ())
        return not limits.faithful or (bool(known) and not any(limits.too_lossy(quality) for quality in known))


def _names(cut: Cut) -> tuple[str, ...]:
    return tuple(t.name for t in cut.crossing)


class CostModel:
    """Prices placements of one graph on these hosts. `codecs` are those that the tables have, raw first.

    InputError for a codec that neither a host nor the calibration has times for, and for a calibration of another
    model.
    """

    def __init__(
        self,
        graph: Graph,
        hosts: Sequence[Host],
        *,
        codecs: Sequence[str] = (RAW,),
        calibration: Calibration | None = None,
    ) -> None:
        self.graph, self.hosts = graph, tuple(hosts)
        self.codecs: tuple[str, ...] = tuple(dict.fromkeys((RAW, *codecs)))
        self.calibrated = Calibrated(graph, calibration)
        timed = {codec for _, codec in self.calibrated.times}
        for name in self.codecs:
            for host in self.hosts:
                if name not in timed:
                    host.codec(name)
        self.steps = GraphSteps(graph)
        self._coded: dict[tuple[int, str, str], Coded] = {}

    # --- what crosses -------------------------------------------------------------------------------------------

    def coded(self, hop: int, spec: TensorSpec, codec: str) -> Coded:
        """How a tensor crosses a hop with `codec`, or raw if the codec does not accept such tensors."""
        key = (hop, spec.name, codec)
        if key not in self._coded:
            self._coded[key] = self._price(hop, spec, codec)
        return self._coded[key]

    def _price(self, hop: int, spec: TensorSpec, name: str) -> Coded:
        codec = open_priced(name)
        ours, theirs = (self._times(host, spec, name) for host in self.hosts[hop : hop + 2])
        if not codec.accepts(spec) or ours is None or theirs is None:
            return self.coded(hop, spec, RAW)
        measured = None if codec.sized else self.calibrated.nbytes.get((spec.name, name))
        nbytes = codec.nbytes(spec) if measured is None else measured
        return Coded(
            name,
            nbytes,
            frame_entry(spec, name, nbytes),
            codec.sized or measured is not None,
            ours[0],
            theirs[1],
        )

    def _times(self, host: Host, spec: TensorSpec, name: str) -> tuple[float, float] | None:
        """Milliseconds of encoding and decoding a tensor on a host: by its profile; of a codec that profiles do not
        time (its work hangs on what a calibration taught it of each tensor) by the calibration, times how much slower
        than the machine that calibrated this one is with the same tensor and int8. None where neither says."""
        if host.knows(name):
            cost, nbytes = host.codec(name), spec.nbytes / 1e6
            encode = cost.encode_fixed_ms + cost.encode_ms_per_mb * nbytes
            return encode, cost.decode_fixed_ms + cost.decode_ms_per_mb * nbytes
        measured, known = (self.calibrated.times.get((spec.name, codec)) for codec in (name, _COMPARED))
        here = self._times(host, spec, _COMPARED) if known and host.knows(_COMPARED) else None
        if measured is None or known is None or here is None:
            return None
        slower = here[0] / known[0]  # encoding: both were timed right after a run of the model
        return measured[0] * slower, measured[1] * slower

    @cached_property
    def tables(self) -> tuple[TensorTable, ...]:
        """Every tensor with every codec, a table for each hop."""
        return tuple(self._table(hop) for hop in range(len(self.hosts) - 1))

    def _table(self, hop: int) -> TensorTable:
        shape = (len(self.steps.tensors), len(self.codecs))
        rows = [[self.coded(hop, t, name) for name in self.codecs] for t in self.steps.tensors]
        numbers = [
            (k.codec == name, k.nbytes + k.entry, 0 if k.sized else k.nbytes, k.encode_ms, k.decode_ms)
            for row in rows
            for k, name in zip(row, self.codecs, strict=True)
        ]
        columns = np.array(numbers, np.float64).reshape(*shape, 5)
        return TensorTable(columns[..., 0] > 0, *(columns[..., k] for k in range(1, 5)))

    # --- placements ---------------------------------------------------------------------------------------------

    def parts(self, cuts: Sequence[Cut]) -> PlacedParts:
        """What a placement with these cuts, one for each hop, costs with any codecs."""
        # The first host runs a head and each other one a tail, of which what is behind its own hop is no part: profiles
        # measure no stretch between two cuts yet, so that this is where a host in the middle would come in.
        first, *others = self.hosts
        heads = [first.profile.head(cuts[0])]
        tails = [host.profile.tail(cut) for host, cut in zip(others, cuts, strict=True)]
        used = tuple(len(cut.nodes) < len(self.graph.placed) for cut in cuts)
        return PlacedParts(
            (*heads, *tails),
            used,
            tuple(REQUEST_NBYTES + VECTOR_NBYTES * len(c.shapes) if u else 0 for c, u in zip(cuts, used, strict=True)),
            tuple(answer_nbytes(self.graph, cut) for cut in cuts),
        )

    def work(self, parts: PlacedParts, coded: Sequence[Sequence[Coded]]) -> RequestWork[float]:
        """What a request costs where the tensors that cross each hop are `coded` so."""
        hops, encode, decode = [], [], [0.0]
        for used, frame, down, tensors in zip(parts.used, parts.frame_nbytes, parts.down_nbytes, coded, strict=True):
            up = guessed = 0
            sending = receiving = 0.0
            for t in tensors if used else ():
                up += t.nbytes + t.entry
                guessed += 0 if t.sized else t.nbytes
                sending += t.encode_ms
                receiving += t.decode_ms
            hops.append(HopWork(float(used), float(frame + up), float(guessed), float(down)))
            encode.append(sending)
            decode.append(receiving)
        hosts = [
            HostWork(s.median, max(s.median - s.p10, 0.0), max(s.p90 - s.median, 0.0), inward, onward)
            for s, inward, onward in zip(parts.computing, decode, (*encode, 0.0), strict=True)
        ]
        return RequestWork(tuple(hosts), tuple(hops))

    @cached_property
    def grid(self) -> RequestWork[Floats]:
        """Every topological prefix (rows) with every codec (columns) at once, between two hosts."""
        device, server = self.hosts
        cuts, [table] = self.graph.prefixes(), self.tables
        stats = [[(host.profile.tail if k else host.profile.head)(p) for p in range(len(cuts))]
                 for k, host in enumerate((device, server))]  # fmt: skip
        used = np.array([len(c.nodes) < len(self.graph.placed) for c in cuts])
        frame = [REQUEST_NBYTES + VECTOR_NBYTES * len(c.shapes) for c in cuts]
        pairs = [(p, self.steps.place[t.name]) for p, c in enumerate(cuts) if used[p] for t in c.crossing]
        prefix, tensor = np.array(pairs, np.intp).reshape(-1, 2).T

        def crossing(column: Floats) -> Floats:
            """float64[prefixes, codecs]: the sum over all that crosses."""
            sums = [np.bincount(prefix, column[tensor, c], len(cuts)) for c in range(len(self.codecs))]
            return np.stack(sums, axis=1).astype(np.float64)

        def spread(stats: Sequence[Stat], decode: Floats, encode: Floats) -> HostWork[Floats]:
            median, low, top = np.array([(s.median, s.p10, s.p90) for s in stats], np.float64).T[..., None]
            return HostWork(median, np.maximum(median - low, 0.0), np.maximum(top - median, 0.0), decode, encode)

        nothing = np.zeros((1, 1))
        hop = HopWork(
            used[:, None].astype(np.float64),
            crossing(table.nbytes) + (used * frame)[:, None],
            crossing(table.guessed),
            np.array([[answer_nbytes(self.graph, c)] for c in cuts], np.float64),
        )
        return RequestWork(
            (
                spread(stats[0], nothing, crossing(table.encode_ms)),
                spread(stats[1], crossing(table.decode_ms), nothing),
            ),
            (hop,),
        )
