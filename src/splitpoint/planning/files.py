"""Plans as readable JSON files. What comes from a file is checked before it is believed."""

from __future__ import annotations

from math import isfinite
from pathlib import Path

import msgspec

from splitpoint.calibration.calibrations import Quality
from splitpoint.documents import Count, Documents, NotNegative
from splitpoint.link import Link
from splitpoint.planning.objectives import NAMES
from splitpoint.planning.plans import (
    FORMAT,
    STAGES,
    Band,
    Crossing,
    HopCosts,
    HostCosts,
    Option,
    OptionKind,
    Plan,
    RateRange,
)


def plan_bytes(plan: Plan) -> bytes:
    """`plan` as readable JSON."""
    return _PLANS.write(plan)


def save_plan(path: Path | str, plan: Plan) -> None:
    """Write `plan`; StorageError if that is not possible, and nothing is half-written."""
    _PLANS.save(path, plan)


def load_plan(path: Path | str) -> Plan:
    """The plan in a file. InputError names the file and what is wrong in it."""
    return _PLANS.load(path)


def parse_plan(data: bytes, where: str = "the plan") -> Plan:
    """The plan in JSON bytes; InputError as `load_plan`."""
    return _PLANS.parse(data, where)


def _check(plan: Plan) -> None:
    """ValueError if what it says does not fit together."""
    if plan.objective not in NAMES:
        raise ValueError(f"objective is {plan.objective[:80]!r} - at `$.objective`")
    if not plan.hosts or len(plan.hosts) != len(plan.links) + 1:
        raise ValueError(f"{len(plan.hosts)} hosts with {len(plan.links)} links between them - at `$.links`")
    for k, option in enumerate(plan.options):
        _check_option(option, len(plan.hosts), f"$.options[{k}]")
    if plan.best not in plan.options:
        raise ValueError("best is not one of options - at `$.best`")
    for k, stretch in enumerate(plan.sensitivity):
        if stretch.up_mbps_from > stretch.up_mbps_to:
            raise ValueError(f"its rates are out of order - at `$.sensitivity[{k}]`")


def _check_option(option: Option, hosts: int, at: str) -> None:
    if (len(option.hosts), len(option.hops)) != (hosts, hosts - 1) or not option.hops:
        there = f"{len(option.hosts)} hosts and {len(option.hops)} hops"
        raise ValueError(f"it has {there} between them, not {hosts} and {hosts - 1} - at `{at}`")
    for k, hop in enumerate(option.hops):
        if list(hop.nodes) != sorted(set(hop.nodes)):
            raise ValueError(f"nodes must be node numbers in order, each once - at `{at}.hops[{k}]`")
    bands = [b for h in option.hosts for b in (h.compute, h.encode)]
    bands += [b for h in option.hops for b in (h.up, h.down)]
    for band in (option.total, *bands):
        # Sums of float64 may be off by a hair.
        hair = 1e-9 * max(1.0, band.ms)
        if not (band.low <= band.ms + hair and band.ms <= band.high + hair and isfinite(band.high - band.low)):
            raise ValueError(f"milliseconds must be in the order low ≤ ms ≤ high - at `{at}`")


# --- files of splitpoint 0.1.0 ----------------------------------------------------------------------------------------


class _Option1(msgspec.Struct, kw_only=True):
    """An option when there were one device, one link and one server, by name."""

    kind: OptionKind
    cut: str
    on_edge: tuple[Count, ...]
    crossing: tuple[Crossing, ...]
    total: Band
    stages: dict[str, Band]
    up_nbytes: Count
    down_nbytes: Count
    throughput: NotNegative
    energy_mj: NotNegative | None = None
    quality: Quality | None = None
    exact: bool = True
    edge_memory: Count = 0
    refused: str = ""

    def now(self) -> Option:
        """The same as it is written today. ValueError if a stage is missing."""
        if set(self.stages) != set(STAGES):
            raise ValueError(f"stages must be {', '.join(STAGES)}")
        device, encode, up, server, down = (self.stages[name] for name in STAGES)
        nothing = Band(0.0, 0.0, 0.0)
        return Option(
            kind=self.kind,
            hosts=(HostCosts(device, encode, self.edge_memory), HostCosts(server, nothing)),
            hops=(HopCosts(self.cut, self.on_edge, self.crossing, self.up_nbytes, self.down_nbytes, up, down),),
            total=self.total,
            throughput=self.throughput,
            energy_mj=self.energy_mj,
            quality=self.quality,
            exact=self.exact,
            refused=self.refused,
        )


class _Plan1(msgspec.Struct, kw_only=True):
    model: str
    fingerprint: str
    objective: str
    link: Link
    edge: str
    cloud: str
    best: _Option1
    options: tuple[_Option1, ...]
    bound: NotNegative
    gap: NotNegative
    advice: str
    constraints: tuple[str, ...] = ()
    sensitivity: tuple[RateRange, ...] = ()
    why: tuple[str, ...] = ()

    def now(self) -> Plan:
        """The same as it is written today."""
        same = {name: getattr(self, name) for name in self.__struct_fields__ if name in Plan.__struct_fields__}
        return Plan(
            **same | {"best": self.best.now(), "options": tuple(o.now() for o in self.options)},
            hosts=(self.edge, self.cloud),
            links=(self.link,),
        )


#: A plan has a handful of rows: a file much larger is something else.
_PLANS = Documents(
    what="a plan", holds=Plan, format=FORMAT, made_by="splitpoint plan -o", most_bytes=64 << 20, check=_check,
    older={1: (_Plan1, _Plan1.now)},
)  # fmt: skip
