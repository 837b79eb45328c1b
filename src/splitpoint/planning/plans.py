"""A plan as a value: it prints as the honest table and loads back from its file."""

from __future__ import annotations

import msgspec

from splitpoint.calibration.calibrations import Quality
from splitpoint.link import Link

FORMAT = 1

#: What an option is, in the words of the table.
KINDS = {
    "device": "all on the device",
    "server": "all on the server, raw input",
    "jpeg": "all on the server, JPEG",
    "split": "split",
}

#: A request's time, in the order it happens. Half of the round trip is in `up` and half in `down`.
STAGES = ("edge", "encode", "up", "server", "down")


class Band(msgspec.Struct, frozen=True, array_like=True):
    """Milliseconds: what is predicted, and between which values four of five requests are expected.

    Of computing these are p10 and p90 of all measured runs; of the network the jitter, late only, and ±5 % of the
    transfer where the link varies; of codecs ±25 %, and as much of bytes that are estimated (`planning.uncertainty`).
    Independent parts add up as the root of their squares. That a profile is of another day is not in it.
    """

    ms: float
    low: float
    high: float

    @property
    def error(self) -> float:
        """The larger distance from `ms` to an end of the band: what a table prints behind ±."""
        return max(self.high - self.ms, self.ms - self.low)


class Crossing(msgspec.Struct, frozen=True):
    """A tensor that crosses, as it travels. `sized` is False where `nbytes` is an estimate."""

    name: str
    codec: str
    nbytes: int
    sized: bool = True


class Option(msgspec.Struct, frozen=True, kw_only=True):
    """One row of the table. `cut` names it; `on_edge` are indices into ``graph.nodes``; `stages` are those of
    `STAGES`, and their medians sum to `total`.
    """

    kind: str
    cut: str
    on_edge: tuple[int, ...]
    crossing: tuple[Crossing, ...]
    total: Band
    stages: dict[str, Band]
    up_nbytes: int
    down_nbytes: int
    throughput: float
    """Requests a second when device, link and server work at the same time: 1000 ÷ the slowest stage in ms."""
    energy_mj: float | None = None
    quality: Quality | None = None
    exact: bool = True
    """Whether the answer is the whole model's on the raw input, bit for bit (no codec on the way loses anything)."""
    edge_memory: int = 0
    """Bytes its head holds on the device: weights and tensors, estimated without the engine's own (some 60 MB)."""
    refused: str = ""
    """Why a constraint rules it out; empty if none does."""

    @property
    def codecs(self) -> tuple[str, ...]:
        """The codec of each crossing tensor."""
        return tuple(c.codec for c in self.crossing)

    @property
    def label(self) -> str:
        """The option in words: ``split after blocks.5, int8``."""
        return label(self.kind, self.cut, self.codecs)

    @property
    def sized(self) -> bool:
        """Whether its bytes are known, not estimated."""
        return all(c.sized for c in self.crossing)


def label(kind: str, cut: str, codecs: tuple[str, ...]) -> str:
    """An option in the words of the table.

    >>> label("split", "blocks.5", ("int8", "raw")), label("jpeg", "input", ("jpeg:90",))
    ('split after blocks.5, int8 + raw', 'all on the server, JPEG q90')
    """
    named = " + ".join(dict.fromkeys(codecs))
    if kind == "device":
        return KINDS[kind]
    if kind == "jpeg":
        quality = next((c.partition(":")[2] for c in codecs if c.startswith("jpeg:")), "")
        return f"{KINDS[kind]} q{quality}"
    if kind == "server":
        return KINDS[kind] if named in ("raw", "") else f"all on the server, {named} input"
    return f"split after {cut}" if named in ("raw", "") else f"split after {cut}, {named}"


class Range(msgspec.Struct, frozen=True):
    """Between these uplink rates (Mbit/s) this is the best option, all else being equal."""

    up_mbps_from: float
    up_mbps_to: float
    kind: str
    cut: str
    codecs: tuple[str, ...]

    @property
    def label(self) -> str:
        """The option in words."""
        return label(self.kind, self.cut, self.codecs)


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """Where to cut, why, and what it was compared with."""

    format: int = FORMAT
    model: str
    fingerprint: str
    objective: str
    link: Link
    edge: str
    cloud: str
    """The two machines in words."""
    best: Option
    options: tuple[Option, ...]
    """The honest table: the plain baselines, the best split, the runners-up; `best` is one of them."""
    bound: float
    """Proven: no placement has a smaller objective (in the objective's own unit)."""
    gap: float
    """How far the best may be above the bound, as a share of it."""
    advice: str
    """One sentence."""
    constraints: tuple[str, ...] = ()
    """What it keeps to, in words."""
    sensitivity: tuple[Range, ...] = ()
    why: tuple[str, ...] = ()
    """`--explain`: why the runner-up lost, stage by stage."""

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


def value(option: Option, objective: str) -> float:
    """What `objective` makes of an option, in its own unit; less is better."""
    if objective == "throughput":
        return 1000 / option.throughput if option.throughput > 0 else float("inf")
    if objective == "energy":
        return option.energy_mj if option.energy_mj is not None else float("inf")
    if objective == "bytes":
        return float(option.up_nbytes + option.down_nbytes)
    if objective == "server-time":
        return option.stages["server"].ms
    return option.total.ms
