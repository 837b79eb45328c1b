"""One placement with its codecs → a row of the table, by the full model: measured heads and tails, frames, spreads."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from math import hypot, sqrt

import msgspec
import numpy as np

from splitpoint.calibration.calibrations import Calibration, Quality, Row
from splitpoint.codecs import open_codec
from splitpoint.graph import JOIN, Cut, Graph
from splitpoint.link import Link
from splitpoint.planning.codec_costs import Pricing
from splitpoint.planning.constraints import Constraints, over_budget, percent
from splitpoint.planning.cost_model import input_like
from splitpoint.planning.frame_bytes import answer_nbytes, request_nbytes
from splitpoint.planning.head_memory import head_memory
from splitpoint.planning.plans import STAGES, Band, Crossing, Option
from splitpoint.planning.uncertainty import BYTES_SHARE, CODEC_SHARE, beside, rate_share
from splitpoint.profile.profiles import Stat
from splitpoint.tensors import TensorSpec
from splitpoint.units import ms, size

#: Requests a second of a request that takes no time: JSON has no infinity.
_ENDLESS = 1e9


class Scorer:
    """Prices placements of one graph on one device and server, and says which constraint rules one out."""

    def __init__(
        self, graph: Graph, pricing: Pricing, constraints: Constraints, calibration: Calibration | None
    ) -> None:
        self.graph, self.pricing, self.constraints = graph, pricing, constraints
        self._cuts = graph.prefixes()
        rows = calibration.rows if calibration is not None else ()
        # What crosses and how decides the answer, not which nodes were left on which side of it.
        self._rows: Mapping[tuple[tuple[str, ...], str], Row] = {
            (tuple(t.name for t in self._cuts[r.prefix].crossing), r.codec): r for r in rows
        }
        self.calibrated = tuple(dict.fromkeys(r.codec for r in rows))
        self._telling = input_like(graph)

    # --- what an option is --------------------------------------------------------------------------------------

    def option(self, cut: Cut, codecs: Sequence[str], link: Link) -> Option:
        """The row for `cut` with a codec for each of ``cut.crossing``, in order."""
        remote = len(cut.nodes) < len(self.graph.placed)
        names = [self.pricing.codec_for(c, t).name for c, t in zip(codecs, cut.crossing, strict=True)]
        row = self._row(cut, names)
        crossing = self._crossing(cut, names, row) if remote else ()
        up = request_nbytes(
            [(t, c.codec, c.nbytes) for t, c in zip(cut.crossing, crossing, strict=True)], len(cut.shapes)
        ) if remote else 0  # fmt: skip
        down = answer_nbytes(self.graph, cut)
        unsized = sum(c.nbytes for c in crossing if not c.sized) / up if up else 0.0
        stages = self._stages(cut, names, up, down, link, unsized)
        total = summed(stages.values())
        exact = all(open_codec(n).exact for n in names)
        memory = self.memory_of(cut)
        found = Option(
            kind=self._kind(cut, names),
            cut=self.name_of(cut),
            on_edge=tuple(sorted(cut.nodes)),
            crossing=crossing,
            total=total,
            stages=stages,
            up_nbytes=up,
            down_nbytes=down,
            throughput=1000 / slowest if (slowest := self._slowest(stages, up, down, link)) > 0 else _ENDLESS,
            energy_mj=self._energy(stages, up, down, link),
            quality=row.quality if row is not None and not exact else None,
            exact=exact,
            edge_memory=round(memory),
        )
        refused = self._refused(found, cut, names)
        return found if not refused else _with(found, refused)

    def _kind(self, cut: Cut, names: Sequence[str]) -> str:
        if len(cut.nodes) == len(self.graph.placed):
            return "device"
        if cut.nodes:
            return "split"
        return "jpeg" if any(n.startswith("jpeg:") for n in names) else "server"

    def _crossing(self, cut: Cut, names: Sequence[str], row: Row | None) -> tuple[Crossing, ...]:
        found = []
        for k, (spec, name) in enumerate(zip(cut.crossing, names, strict=True)):
            codec = open_codec(name)
            nbytes = codec.nbytes(spec) if codec.sized or row is None else row.nbytes[k]
            found.append(Crossing(spec.name, name, nbytes, codec.sized or row is not None))
        return tuple(found)

    def row(self, cut: Cut, codec: str) -> Row | None:
        """What a calibration says of this codec for all that crosses at `cut`."""
        return self._rows.get((tuple(t.name for t in cut.crossing), codec))

    def _row(self, cut: Cut, names: Sequence[str]) -> Row | None:
        """The calibrated row for these codecs at this cut, if they are one codec for all that accept it."""
        for codec in dict.fromkeys(names):
            if [self.pricing.codec_for(codec, t).name for t in cut.crossing] == list(names):
                found = self.row(cut, codec)
                if found is not None and len(found.nbytes) == len(names):
                    return found
        return None

    def prefix_of(self, cut: Cut) -> int | None:
        """The place of `cut` in ``graph.prefixes()``; None if it is not one of them."""
        found = self._by_count.get(len(cut.nodes))
        if found is None or self._cuts[found] is cut:
            return found
        return found if self._cuts[found].nodes == cut.nodes else None

    @cached_property
    def _by_count(self) -> Mapping[int, int]:
        return {len(c.nodes): p for p, c in enumerate(self._cuts)}

    def name_of(self, cut: Cut) -> str:
        """Its name, as ``--at`` takes it; of a cut where more than three branches end, one for people (see `Plan`)."""
        prefix = self.prefix_of(cut)
        layers = [self._cuts[prefix].name] if prefix is not None else self.graph.name_of(cut.nodes).split(JOIN)
        return JOIN.join(layers[:3]) + (f"{JOIN}{len(layers) - 3} more" if len(layers) > 3 else "")

    # --- milliseconds -------------------------------------------------------------------------------------------

    def _stages(
        self, cut: Cut, names: Sequence[str], up: int, down: int, link: Link, unsized: float
    ) -> dict[str, Band]:
        """`unsized` is the share of the bytes `up` that is estimated."""
        remote = len(cut.nodes) < len(self.graph.placed)
        encode = sum(self.pricing.encode_ms(n, t.nbytes) for n, t in zip(names, cut.crossing, strict=True))
        decode = sum(self.pricing.decode_ms(n, t.nbytes) for n, t in zip(names, cut.crossing, strict=True))
        half, late = (link.rtt_ms / 2, link.jitter_ms / sqrt(2)) if remote else (0.0, 0.0)
        rate, rough = rate_share(link), BYTES_SHARE * unsized
        bands = (
            _band(self.pricing.edge.head(cut)),
            _around(encode, CODEC_SHARE),
            _transfer(half, late, link.up_ms(up), rate, rough),
            summed((_band(self.pricing.cloud.tail(cut)), _around(decode, CODEC_SHARE))),
            _transfer(half, late, link.down_ms(down), rate),
        )
        return dict(zip(STAGES, bands, strict=True))

    def _slowest(self, stages: Mapping[str, Band], up: int, down: int, link: Link) -> float:
        network = link.up_ms(up) + link.down_ms(down)
        return max(stages["edge"].ms + stages["encode"].ms, network, stages["server"].ms)

    def _energy(self, stages: Mapping[str, Band], up: int, down: int, link: Link) -> float | None:
        """Millijoules on the device: computing, sending and receiving, waiting."""
        watts = self.pricing.edge.watts
        if watts is None:
            return None
        computing = stages["edge"].ms + stages["encode"].ms
        sending = link.up_ms(up) + link.down_ms(down)
        waiting = sum(s.ms for s in stages.values()) - computing - sending
        return watts.compute * computing + watts.tx * sending + watts.idle * waiting

    # --- what rules it out --------------------------------------------------------------------------------------

    @cached_property
    def _memory(self) -> Sequence[float]:
        return [float(n) for n in head_memory(self.graph)]

    def memory_of(self, cut: Cut) -> float:
        """Bytes its head holds by `head_memory`; of a cut that is no prefix, what the smallest one around it does."""
        if not cut.nodes:
            return 0.0
        prefix = self.prefix_of(cut)
        if prefix is None:
            prefix = int(np.searchsorted(self._counts, 1 + max(self._rank[i] for i in cut.nodes)))
        return self._memory[prefix]

    @cached_property
    def _counts(self) -> Sequence[int]:
        return [len(c.nodes) for c in self._cuts]

    @cached_property
    def _rank(self) -> Mapping[int, int]:
        flat = (i for step in self.graph.order for i in step)
        return {i: k for k, i in enumerate(flat)}

    def _refused(self, found: Option, cut: Cut, names: Sequence[str]) -> str:
        limits = self.constraints
        reasons = []
        if limits.shared is not None and (why := limits.shared.refusal(cut, self.graph)):
            reasons.append(why)
        if limits.keep_input_local and any(t.name in self._telling for t in cut.crossing):
            reasons.append("the input would leave the device")
        if not found.exact and (lossy := self.too_lossy(found.quality, names)):
            reasons.append(lossy)
        if limits.max_edge_memory is not None and found.edge_memory > limits.max_edge_memory:
            reasons.append(f"its head holds about {size(found.edge_memory)} on the device")
        if limits.deadline_ms is not None and found.total.high > limits.deadline_ms:
            reasons.append(f"one request in ten takes longer than {ms(found.total.high)} ms")
        return "; ".join(reasons)

    def too_lossy(self, quality: Quality | None, names: Sequence[str]) -> str:
        """Why codecs that lose something are not to be used; empty if they may be.

        With a budget it must be shown to be kept. Without one, a codec that was asked for is taken as it is, and
        another only where no label changed.
        """
        if self.constraints.max_drop is not None:
            return over_budget(quality, self.constraints.max_drop)
        asked = set(self.constraints.codecs)
        if all(n in asked or open_codec(n).exact for n in names):
            return ""
        if quality is None or quality.agreement is None:
            return "its accuracy is not measured (splitpoint calibrate)"
        return "" if quality.agreement == 1 else f"{percent(1 - quality.agreement)} of the labels change"


def summed(bands: Iterable[Band]) -> Band:
    """The sum of stages whose spreads are independent: medians add up, spreads as root of squares."""
    parts = list(bands)
    middle = sum(b.ms for b in parts)
    below = sqrt(sum((b.ms - b.low) ** 2 for b in parts))
    above = sqrt(sum((b.high - b.ms) ** 2 for b in parts))
    return Band(middle, middle - below, middle + above)


def uniform(cut: Cut, codec: str) -> list[str]:
    """`codec` for every tensor that crosses; where one does not accept it, `Scorer.option` takes raw."""
    return [codec] * len(cut.crossing)


def jpeg_inputs(graph: Graph) -> tuple[TensorSpec, ...]:
    """The inputs of a graph that a JPEG can stand for: uint8 images."""
    codec = open_codec("jpeg:90")
    return tuple(t for t in graph.prefixes()[0].crossing if codec.accepts(t))


def _band(stat: Stat) -> Band:
    return Band(stat.median, min(stat.p10, stat.median), max(stat.p90, stat.median))


def _around(ms: float, *shares: float) -> Band:
    error = beside(ms, *shares)
    return Band(ms, ms - error, ms + error)


def _transfer(half: float, late: float, ms: float, *shares: float) -> Band:
    """Bytes one way, whose time is as unsure as `shares` say, with half of the round trip, which may be `late`."""
    error = beside(ms, *shares)
    return Band(half + ms, half + ms - error, half + ms + hypot(error, late))


def _with(option: Option, refused: str) -> Option:
    return msgspec.structs.replace(option, refused=refused)
