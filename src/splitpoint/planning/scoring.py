"""One placement with its codecs → a row of the table: its costs, its names, and which constraint rules it out."""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass
from functools import cached_property
from math import sqrt

from splitpoint.calibration.calibrations import Quality
from splitpoint.codecs import OPPONENTS, needs_tables, open_priced, picture
from splitpoint.graph import JOIN, Cut
from splitpoint.link import Link
from splitpoint.planning.constraints import Constraints, input_like, percent
from splitpoint.planning.cost_model import Coded, CostModel, Delay, PlacedParts, hop_delays, host_delays
from splitpoint.planning.graph_steps import head_memory
from splitpoint.planning.hosts import RAW
from splitpoint.planning.objectives import weights_of
from splitpoint.planning.plans import UNSENT, Band, Crossing, HopCosts, HostCosts, Option, OptionKind
from splitpoint.units import ms, size

#: Requests a second of a request that takes no time: JSON has no infinity.
_ENDLESS = 1e9


@dataclass(frozen=True)
class _Placed:
    """What an option says of a cut whatever the link and the codecs are; made once for each cut."""

    parts: PlacedParts
    name: str
    nodes: tuple[int, ...]
    memory: float
    refusal: str


class Scorer:
    """Prices placements of one graph on a device and a server, and says which constraint rules one out."""

    def __init__(self, costs: CostModel, constraints: Constraints) -> None:
        self.costs, self.graph, self.constraints = costs, costs.graph, constraints
        self._placed: dict[Set[int], _Placed] = {}
        self._fitting: dict[Set[int], str] = {}
        # Of a request, not of a plan: energy is told wherever the watts are known.
        self._energy = weights_of("energy", costs.hosts) if costs.hosts[0].profile.watts is not None else None

    # --- what an option is --------------------------------------------------------------------------------------

    def option(self, cut: Cut, codecs: Sequence[str], link: Link) -> Option:
        """The row for `cut` with a codec for each of ``cut.crossing``, in order."""
        links = (link,)
        placed = self._at(cut)
        coded = [self.costs.coded(0, t, c) for c, t in zip(codecs, cut.crossing, strict=True)]
        names = [t.codec for t in coded]
        work = self.costs.work(placed.parts, [coded])
        exact = all(open_priced(name).exact for name in names)
        quality = None if exact else self._quality(cut, names)
        on_hosts = [host_delays(host) for host in work.hosts]
        on_hops = [hop_delays(hop, at) for hop, at in zip(work.hops, links, strict=True)]
        delays = [delay for pair in (*on_hosts, *on_hops) for delay in pair]
        # Spreads are independent: medians add up, spreads as root of squares.
        total = _band(Delay(sum(d.ms for d in delays), sum(d.below for d in delays), sum(d.above for d in delays)))
        reasons = [placed.refusal, "" if exact else self.too_lossy(quality, names), *map(_unsent, names)]
        if self.constraints.max_bytes is not None:
            reasons.append(self.too_large(cut, names) or self._outdone(cut, names))
        if self.constraints.deadline_ms is not None and total.high > self.constraints.deadline_ms:
            reasons.append(f"one request in ten takes longer than {ms(total.high)} ms")
        slowest = max(work.busy(links))
        return Option(
            kind=self._kind(cut, names),
            hosts=tuple(
                HostCosts(_band(compute), _band(encode), round(memory), bool(stat.median) and not stat.count)
                for (compute, encode), memory, stat in zip(
                    on_hosts, (placed.memory, 0.0), placed.parts.computing, strict=True
                )
            ),
            hops=tuple(
                HopCosts(placed.name, placed.nodes, _crossing(cut, coded, hop.used), int(hop.up), int(hop.down),
                         _band(up), _band(down))
                for hop, (up, down) in zip(work.hops, on_hops, strict=True)
            ),
            total=total,
            throughput=1000 / slowest if slowest > 0 else _ENDLESS,
            energy_mj=None if self._energy is None else work.value(links, self._energy),
            quality=quality,
            exact=exact,
            refused="; ".join(reason for reason in reasons if reason),
        )  # fmt: skip

    def _at(self, cut: Cut) -> _Placed:
        if cut.nodes not in self._placed:
            nodes, memory = tuple(sorted(cut.nodes)), self.memory_of(cut)
            placed = _Placed(self.costs.parts([cut]), self.name_of(cut), nodes, memory, self.refusal(cut))
            self._placed[cut.nodes] = placed
        return self._placed[cut.nodes]

    def _kind(self, cut: Cut, names: Sequence[str]) -> OptionKind:
        if len(cut.nodes) == len(self.graph.placed):
            return "device"
        if len(cut.nodes):
            return "split"
        if any(map(_unsent, names)):
            return "opponent"
        return "jpeg" if any(map(picture, names)) else "server"

    def _quality(self, cut: Cut, names: Sequence[str]) -> Quality | None:
        """What is calibrated of these codecs at this cut, if they are one codec for all that accept it."""
        for codec in dict.fromkeys(names):
            if [self.costs.coded(0, t, codec).codec for t in cut.crossing] == list(names):
                quality = self.costs.calibrated.quality(cut, codec)
                if quality is not None:
                    return quality
        return None

    def prefix_of(self, cut: Cut) -> Cut | None:
        """The topological prefix with the same nodes; None if there is none."""
        around = self.graph.prefixes()[self.costs.steps.around(cut)]
        return around if len(around.nodes) == len(cut.nodes) else None

    def name_of(self, cut: Cut) -> str:
        """Its name, as ``--at`` takes it; of a cut where more than three branches end, one for people (see `Plan`)."""
        prefix = self.prefix_of(cut)
        layers = [prefix.name] if prefix is not None else self.graph.name_of(cut.nodes).split(JOIN)
        return JOIN.join(layers[:3]) + (f"{JOIN}{len(layers) - 3} more" if len(layers) > 3 else "")

    # --- what rules it out --------------------------------------------------------------------------------------

    def refusal(self, cut: Cut) -> str:
        """Why constraints rule out a cut whatever the link and the codecs are; empty if none does."""
        limits, reasons = self.constraints, []
        if limits.shared is not None and (why := limits.shared.refusal(cut, self.graph)):
            reasons.append(why)
        if limits.keep_input_local and any(t.name in self._input_like for t in cut.crossing):
            reasons.append("the input would leave the edge")
        most = self.costs.hosts[0].most_memory
        if most is not None and (memory := self.memory_of(cut)) > most:
            reasons.append(f"its head holds about {size(round(memory))} on the edge")
        return "; ".join(reasons)

    def too_lossy(self, quality: Quality | None, names: Sequence[str]) -> str:
        """Why codecs that lose something are not to be used; empty if they may be.

        With a budget it must be shown to be kept. Without one, a codec that was asked for is taken as it is, and
        another only where no label changed.
        """
        if self.constraints.faithful:
            return self.constraints.too_lossy(quality)
        if self.constraints.best_that_fits and quality is not None and quality.agreement is not None:
            return ""
        asked = set(self.constraints.codecs)
        if all(n in asked or open_priced(n).exact for n in names):
            return ""
        if quality is None or quality.agreement is None:
            return "its accuracy is not measured (splitpoint calibrate-codecs)"
        return "" if quality.agreement == 1 else f"{percent(1 - quality.agreement)} of the labels change"

    def lossy_refusal(self, cut: Cut, codec: str) -> str:
        """Why one codec for all that crosses at `cut` loses too much there; empty if it does not."""
        names = [self.costs.coded(0, t, codec).codec for t in cut.crossing]
        if all(open_priced(n).exact for n in names):
            return ""
        return self.too_lossy(self.costs.calibrated.quality(cut, codec), names)

    def too_large(self, cut: Cut, names: Sequence[str]) -> str:
        """Why a request with these codecs has more bytes than it may have; empty if it has not. Of klt the usual bytes
        count, as each frame is encoded coarser if it has more; of what is compressed otherwise, the most seen."""
        limit, placed = self.constraints.max_bytes, self._at(cut)
        if limit is None or not placed.parts.used[0]:
            return ""
        coded = [self.costs.coded(0, t, name) for t, name in zip(cut.crossing, names, strict=True)]
        nbytes = sum(t.nbytes for t in coded)
        if not all(t.codec == RAW or needs_tables(t.codec) or open_priced(t.codec).sized for t in coded):
            seen = [self.costs.calibrated.largest(cut, codec) for codec in dict.fromkeys(names) if codec != RAW]
            nbytes = max([nbytes, *(most for most in seen if most is not None)])
        nbytes += placed.parts.frame_nbytes[0] + sum(t.entry for t in coded)
        return f"its request has up to {size(nbytes)}" if nbytes > limit else ""

    def _outdone(self, cut: Cut, names: Sequence[str]) -> str:
        """Why another codec is taken where the bytes alone decide; empty if none is better."""
        if not self.constraints.best_that_fits or not cut.crossing:
            return ""
        best = self.best_that_fits(cut)
        kept = [self.costs.coded(0, t, best or RAW).codec for t in cut.crossing]
        if not best or kept == list(names) or all(open_priced(name).exact for name in names):
            return ""
        return f"{best} keeps more of the answers within the bytes"

    def best_that_fits(self, cut: Cut) -> str:
        """The codec that keeps the most answers of those with which a request at `cut` has no more bytes than it may
        have; of equals the one with the fewest. Empty if there is none."""
        if cut.nodes not in self._fitting:
            kept = []
            for codec in (RAW, *self.costs.calibrated.codecs):
                names = [self.costs.coded(0, t, codec).codec for t in cut.crossing]
                quality = self.costs.calibrated.quality(cut, codec)
                exact = all(open_priced(name).exact for name in names)
                share = 1.0 if exact else None if quality is None else quality.agreement
                if share is not None and not any(map(_unsent, names)) and not self.too_large(cut, names):
                    kept.append((-share, sum(self.costs.coded(0, t, codec).nbytes for t in cut.crossing), codec))
            self._fitting[cut.nodes] = min(kept, default=(0.0, 0, ""))[2]
        return self._fitting[cut.nodes]

    @cached_property
    def _input_like(self) -> frozenset[str]:
        return input_like(self.graph)

    @cached_property
    def memory(self) -> Sequence[float]:
        """Bytes that the head of each prefix holds (`head_memory`)."""
        return [float(n) for n in head_memory(self.graph)]

    def memory_of(self, cut: Cut) -> float:
        """Bytes its head holds by `head_memory`; of a cut that is no prefix, what the smallest one around it does."""
        return self.memory[self.costs.steps.around(cut)]


def uniform(cut: Cut, codec: str) -> list[str]:
    """`codec` for every tensor that crosses; where one does not accept it, `Scorer.option` takes raw."""
    return [codec] * len(cut.crossing)


def _unsent(codec: str) -> str:
    """Why a picture is only compared with; empty for codecs that are sent."""
    return f"{UNSENT} {picture(codec)}" if codec.partition(":")[0] in OPPONENTS else ""


def _band(delay: Delay[float]) -> Band:
    return Band(delay.ms, delay.ms - sqrt(delay.below), delay.ms + sqrt(delay.above))


def _crossing(cut: Cut, coded: Sequence[Coded], used: float) -> tuple[Crossing, ...]:
    if not used:
        return ()
    return tuple(Crossing(t.name, c.codec, c.nbytes, c.sized) for t, c in zip(cut.crossing, coded, strict=True))
