"""A plan as a value: it prints as the honest table and loads back from its file."""

from __future__ import annotations

import msgspec

from splitpoint.calibration.values import Quality
from splitpoint.link import Link

FORMAT = 1

#: What an option is, in the words of the table.
KINDS = {
    "device": "all on the device",
    "server": "all on the server, raw input",
    "jpeg": "all on the server, JPEG",
    "split": "split",
}


class Band(msgspec.Struct, frozen=True, array_like=True):
    """Milliseconds: what is predicted, and between which values four of five requests are expected (p10…p90)."""

    ms: float
    low: float
    high: float


class Crossing(msgspec.Struct, frozen=True):
    """A tensor that crosses, as it travels. `sized` is False where `nbytes` is an estimate."""

    name: str
    codec: str
    nbytes: int
    sized: bool = True


class Option(msgspec.Struct, frozen=True, kw_only=True):
    """One row of the table. `cut` names it; `on_edge` are indices into ``graph.nodes``; `stages` are
    edge, encode, up, server, down (and rtt inside `link`), in the order they happen, and sum to `total`.
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
    refused: str = ""
    """Why a constraint rules it out; empty if none does."""


class Range(msgspec.Struct, frozen=True):
    """Between these uplink rates (Mbit/s) this is the best option, all else being equal."""

    up_mbps_from: float
    up_mbps_to: float
    kind: str
    cut: str
    codecs: tuple[str, ...]


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
    advice: str
    """One sentence."""
    sensitivity: tuple[Range, ...] = ()
    why: tuple[str, ...] = ()
    """`--explain`: why the runner-up lost, stage by stage."""
