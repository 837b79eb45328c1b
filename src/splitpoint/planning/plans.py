"""A plan as a value."""

from __future__ import annotations

from typing import Final, Literal

import msgspec

from splitpoint.calibration.calibrations import Quality
from splitpoint.codecs import picture
from splitpoint.documents import Above0, Count, NotNegative, Share, require_model
from splitpoint.errors import UsageError
from splitpoint.link import Link

#: Of the file. 1 (splitpoint 0.1.0) had one device, one link and one server, by name.
FORMAT = 2

OptionKind = Literal["device", "server", "jpeg", "opponent", "split"]
#: The kind of a range of rates at which no option keeps to the constraints.
NO_OPTION: Final = "none"
RangeKind = Literal["device", "server", "jpeg", "opponent", "split", "none"]
#: What an option is, in the words of the table.
KINDS = {
    "device": "all on the edge",
    "server": "all on the server, raw input",
    "jpeg": "all on the server, JPEG",
    "opponent": "all on the server, another picture (priced only)",
    "split": "split",
}

#: How the reason begins why an option that is there to be compared with is refused.
UNSENT = "splitpoint does not send"

#: A request's time between a device and a server, in the order it happens. Half of the round trip is in `up` and half
#: in `down`; what the server decodes is part of `server`.
STAGES = ("edge", "encode", "up", "server", "down")


class Band(msgspec.Struct, frozen=True, array_like=True):
    """Milliseconds: the median that is predicted, and between which values four of five requests are expected.

    `planning.cost_model` says what the spread of each part is. That a profile is of another day is not in it.
    """

    ms: NotNegative
    low: float
    high: float

    @property
    def error(self) -> float:
        """The larger half of the band (ms): what a table prints behind ±."""
        return max(self.high - self.ms, self.ms - self.low)


class Crossing(msgspec.Struct, frozen=True):
    """A tensor that crosses, as it travels. `sized` is False where `nbytes` is an estimate."""

    name: str
    codec: str
    nbytes: Count
    sized: bool = True


class HostCosts(msgspec.Struct, frozen=True):
    """What a request takes on one host: computing its part (with decoding what comes in), encoding what goes on."""

    compute: Band
    encode: Band
    memory: Count = 0
    """Bytes of its part's weights and tensors, estimated, without the engine's own (some 60 MB). 0 on the last host."""
    modelled: bool = False
    """Whether `compute` was modelled or predicted, not measured: its band is wider by how far off that may be."""


class HopCosts(msgspec.Struct, frozen=True):
    """What crosses from one host to the next: bytes and milliseconds `up`, and `down` for the answer, frames included.

    `cut` names the place; `nodes` are those before it, indices into ``graph.nodes``.
    """

    cut: str
    nodes: tuple[Count, ...]
    crossing: tuple[Crossing, ...]
    up_nbytes: Count
    down_nbytes: Count
    up: Band
    down: Band


class Option(msgspec.Struct, frozen=True, kw_only=True):
    """One row of the table: what a request takes on each of `hosts`, the device first, and on each hop between them.

    Medians sum to `total`. `cut`, `on_edge`, `crossing` and the bytes are those of the hop behind the device.
    """

    kind: OptionKind
    hosts: tuple[HostCosts, ...]
    hops: tuple[HopCosts, ...]
    total: Band
    throughput: NotNegative
    """Requests a second when hosts and links work at the same time: 1000 ÷ the slowest of them in ms."""
    energy_mj: NotNegative | None = None
    quality: Quality | None = None
    exact: bool = True
    """Whether no codec on the way loses anything."""
    refused: str = ""
    """Why a constraint rules it out; empty if none does."""

    @property
    def cut(self) -> str:
        """The name of the cut behind the device."""
        return self.hops[0].cut

    @property
    def on_edge(self) -> tuple[int, ...]:
        """The nodes on the device, as indices into ``graph.nodes``."""
        return self.hops[0].nodes

    @property
    def crossing(self) -> tuple[Crossing, ...]:
        """What leaves the device."""
        return self.hops[0].crossing

    @property
    def up_nbytes(self) -> int:
        """Bytes that the device sends."""
        return self.hops[0].up_nbytes

    @property
    def down_nbytes(self) -> int:
        """Bytes that come back to the device."""
        return self.hops[0].down_nbytes

    @property
    def edge_memory(self) -> int:
        """Bytes that the device's part holds."""
        return self.hosts[0].memory

    @property
    def stages(self) -> dict[str, Band]:
        """The time of a request by the names of `STAGES`."""
        device, server, hop = self.hosts[0], self.hosts[-1], self.hops[0]
        return dict(zip(STAGES, (device.compute, device.encode, hop.up, server.compute, hop.down), strict=True))

    @property
    def codecs(self) -> tuple[str, ...]:
        """The codec of each crossing tensor."""
        return tuple(c.codec for c in self.crossing)

    @property
    def label(self) -> str:
        """The option in words: ``split after blocks.5, int8``."""
        return label(self.kind, self.cut, self.codecs)

    @property
    def modelled(self) -> bool:
        """Whether a part of it was never measured."""
        return any(host.modelled for host in self.hosts)

    @property
    def sized(self) -> bool:
        """Whether its bytes are known, not estimated."""
        return all(c.sized for hop in self.hops for c in hop.crossing)


def label(kind: str, cut: str, codecs: tuple[str, ...]) -> str:
    """An option in the words of the table.

    >>> label("split", "blocks.5", ("int8", "raw")), label("jpeg", "input", ("jpeg:90",))
    ('split after blocks.5, int8 + raw', 'all on the server, JPEG q90')
    """
    named = " + ".join(dict.fromkeys(codecs))
    if kind in ("device", NO_OPTION):
        return KINDS.get(kind, "nothing keeps to the constraints")
    if kind in ("jpeg", "opponent"):
        shown = next((words for words in map(picture, codecs) if words), "JPEG")
        return f"all on the server, {shown}{' (priced only)' if kind == 'opponent' else ''}"
    if kind == "server":
        return KINDS[kind] if named in ("raw", "") else f"all on the server, {named} input"
    return f"split after {cut}" if named in ("raw", "") else f"split after {cut}, {named}"


class RateRange(msgspec.Struct, frozen=True):
    """Between these uplink rates (Mbit/s) this is the best option, all else being equal; `NO_OPTION`: none is."""

    up_mbps_from: Above0
    up_mbps_to: Above0
    kind: RangeKind
    cut: str
    codecs: tuple[str, ...]

    @property
    def label(self) -> str:
        """The option in words."""
        return label(self.kind, self.cut, self.codecs)


class AgreementRanges(msgspec.Struct, frozen=True):
    """What is best at which rates where `agreement` (a share) must be kept."""

    agreement: Share
    ranges: tuple[RateRange, ...]


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """Where to cut, why, and what it was compared with.

    `hosts` are the machines in words, the device first; `links` are the hops between them.
    """

    format: int = FORMAT
    model: str
    fingerprint: str
    objective: str
    hosts: tuple[str, ...]
    links: tuple[Link, ...]
    best: Option
    options: tuple[Option, ...]
    """The honest table: the plain baselines, the best split, the runners-up; `best` is one of them."""
    bound: NotNegative
    """Proven: no placement has a smaller objective (in the objective's own unit)."""
    gap: NotNegative
    """How far the best may be above the bound, as a share of it."""
    advice: str
    """One sentence."""
    constraints: tuple[str, ...] = ()
    """What it keeps to, in words."""
    sensitivity: tuple[RateRange, ...] = ()
    agreements: tuple[AgreementRanges, ...] = ()
    """With a calibration: the same for some agreements that may be asked for."""
    why: tuple[str, ...] = ()
    """`--explain`: why the runner-up lost, stage by stage."""

    @property
    def link(self) -> Link:
        """The hop behind the device."""
        return self.links[0]

    def require(self, fingerprint: str, name: str, document: str = "the plan") -> None:
        """UsageError unless this is a plan for the model with that fingerprint, called `name` in the message."""
        mine, way_out = (self.model, self.fingerprint), "make one with splitpoint plan"
        require_model(document, mine, (name, fingerprint), way_out, UsageError)

    @property
    def split(self) -> Option | None:
        """The best split in the table, allowed or not; None if the model has none."""
        return next((o for o in self.options if o.kind == "split"), None)

    def option(self, kind: str) -> Option | None:
        """The first option of a kind (see `KINDS`)."""
        return next((o for o in self.options if o.kind == kind), None)

    def __str__(self) -> str:
        rows = [f"{'→' if o == self.best else ' '} {o.label}: {o.total.ms:.1f} ms" for o in self.options]
        return "\n".join([self.advice, *rows])


def kept(option: Option) -> float | None:
    """The share of the answers that `option` keeps; None if that is not known."""
    if option.exact:
        return 1.0
    return option.quality.agreement if option.quality is not None else None


def value(option: Option, objective: str) -> float:
    """What `objective` makes of an option, in its own unit; less is better."""
    if objective == "throughput":
        return 1000 / option.throughput if option.throughput > 0 else float("inf")
    if objective == "energy":
        return option.energy_mj if option.energy_mj is not None else float("inf")
    if objective == "bytes":
        return float(sum(hop.up_nbytes + hop.down_nbytes for hop in option.hops))
    if objective == "server-time":
        return sum(host.compute.ms + host.encode.ms for host in option.hosts[1:])
    return option.total.ms
