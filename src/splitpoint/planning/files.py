"""Plans as readable JSON files. What comes from a file is checked before it is believed."""

from __future__ import annotations

from math import isfinite
from typing import Any

import msgspec

from splitpoint.documents import Count, Documents
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
    Plan,
)


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


class _Option1(Option, frozen=True, kw_only=True):
    """An option when there were one device, one link and one server, by name."""

    hosts: tuple[HostCosts, ...] = ()
    hops: tuple[HopCosts, ...] = ()
    cut: str
    on_edge: tuple[Count, ...]
    crossing: tuple[Crossing, ...]
    stages: dict[str, Band]
    up_nbytes: Count
    down_nbytes: Count
    edge_memory: Count = 0

    def now(self) -> Option:
        """The same as it is written today. ValueError if a stage is missing."""
        if set(self.stages) != set(STAGES):
            raise ValueError(f"stages must be {', '.join(STAGES)}")
        device, encode, up, server, down = (self.stages[name] for name in STAGES)
        hop = HopCosts(self.cut, self.on_edge, self.crossing, self.up_nbytes, self.down_nbytes, up, down)
        hosts = HostCosts(device, encode, self.edge_memory), HostCosts(server, Band(0.0, 0.0, 0.0))
        return Option(**_fields(self, Option) | {"hosts": hosts, "hops": (hop,)})


class _Plan1(Plan, frozen=True, kw_only=True):
    format: int = 1
    hosts: tuple[str, ...] = ()
    links: tuple[Link, ...] = ()
    link: Link
    edge: str
    cloud: str
    best: _Option1
    options: tuple[_Option1, ...]

    def now(self) -> Plan:
        """The same as it is written today."""
        rows = {"best": self.best.now(), "options": tuple(o.now() for o in self.options)}
        machines = {"format": FORMAT, "hosts": (self.edge, self.cloud), "links": (self.link,)}
        return Plan(**_fields(self, Plan) | rows | machines)


def _fields(old: msgspec.Struct, now: type[msgspec.Struct]) -> dict[str, Any]:
    """What `old` has in the fields of `now`."""
    return {name: getattr(old, name) for name in now.__struct_fields__}


#: A plan has a handful of rows: a file much larger is something else.
_PLANS = Documents(
    what="a plan", holds=Plan, format=FORMAT, made_by="splitpoint plan -o", most_bytes=64 << 20, check=_check,
    older={1: (_Plan1, _Plan1.now)},
)  # fmt: skip
plan_bytes, save_plan, load_plan, parse_plan = _PLANS.write, _PLANS.save, _PLANS.load, _PLANS.parse
