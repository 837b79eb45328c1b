"""What options cost under conditions, by planners for the slowdowns that occur. Pure.

A planner is made for one speed of device and server. Those for other speeds are made when they are needed, in steps,
and kept: making one takes some 10 ms, asking it 2 ms.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import exp, log

import msgspec

from splitpoint.link import Link
from splitpoint.planning.planner import Planner
from splitpoint.planning.plans import Option
from splitpoint.runtime.adapt.conditions import Conditions
from splitpoint.runtime.stream.stream_load import judge

#: Slowdowns are planned for in steps of 10 %; one stays in its step until it is this far from it (of a step).
_STEP = log(1.1)
_LEAVES_STEP = 0.8
#: Slowdowns beyond are taken for these.
_LEAST_FACTOR, _MOST_FACTOR = 1 / 16, 64.0
#: Planners that are kept, the last ones used.
_PLANNERS = 8
#: A stream that is planned for throughput is planned for latency again when that keeps up with so much more.
_LIGHT = 1.1
#: Under rates that differ by less than this share, and a round trip by less than this share of the best option's time,
#: that option is still the best, or nearly.
_SAME_RATE, _SAME_TRIP = 0.03, 0.02
#: What a link may be.
_LEAST_MBPS, _MOST_MBPS, _MOST_MS = 1e-6, 1e9, 1e7


@dataclass(frozen=True)
class View:
    """A planner for the slowdowns (`easier`: the same without a deadline) and the link, whose round trip includes all
    that a remote request costs besides."""

    planner: Planner
    easier: Planner
    link: Link

    def on(self, share: float) -> View:
        """The same on a link with this share of the rates."""
        up, down = (min(max(r * share, _LEAST_MBPS), _MOST_MBPS) for r in (self.link.up_mbps, self.link.down_mbps))
        return View(self.planner, self.easier, msgspec.structs.replace(self.link, up_mbps=up, down_mbps=down))

    def price(self, option: Option) -> Option:
        return self.planner.price(option.on_edge, option.codecs, self.link)

    def best(self) -> Option | None:
        """The best that keeps to the constraints, and of what is as good what keeps the most answers; where none can
        keep the deadline now, the fastest."""
        best = self.planner.best(self.link)
        if best is not None:
            return self.planner.finer(best, self.link)
        return None if self.easier is self.planner else self.easier.best(self.link)

    def alone(self) -> Option | None:
        """What to do without a server: all on the edge, in whatever time; None if a constraint rules it out."""
        local = self.easier.local(self.link)
        return None if local.refused else local

    def remote(self) -> Option | None:
        return self.planner.remote(self.link)

    def plain(self) -> Option | None:
        """All on the server, raw input; None if there is nothing to compute."""
        cut = self.planner.graph.prefixes()[0]
        option = self.planner.price(cut, ["raw"] * len(cut.crossing), self.link)
        return None if option.kind == "device" else option


def same(one: Option, other: Option) -> bool:
    """Whether two options are one way to serve a request, whatever they cost."""
    return one.on_edge == other.on_edge and one.codecs == other.codecs


class OptionCosts:
    """What options cost under changing conditions, and the last best ones: conditions seldom change between two looks.
    An agreement that `planner` must keep is one that the calibration's lower end (95 % confidence) keeps.

    `rate` is how many frames a second arrive in a stream (inf: as many as are answered; 0: it is none). Then each view
    is one of a planner for latency or for throughput, by the load test of DADS (`stream_load.judge`), whichever
    `planner` is.
    """

    def __init__(self, planner: Planner, rate: float = 0.0) -> None:
        planner = planner.bounded()
        self.objective = planner.objective
        self._rate = rate if planner.objective in ("latency", "throughput") else 0.0
        self._base = {planner.objective: planner}
        if self._rate:
            for objective in {"latency", "throughput"} - {planner.objective}:
                self._base[objective] = planner.relaxed(planner.constraints, objective)
        self._planned = lru_cache(_PLANNERS * len(self._base))(self._plan)
        self._step = (0, 0)
        self._last: dict[str, tuple[View, Option]] = {}

    def view(self, conditions: Conditions) -> View:
        """What options cost under `conditions`. A new slowdown costs a planner. A stream's `objective` is chosen."""
        c = conditions
        self._step = (_step(c.device, self._step[0]), _step(c.server, self._step[1]))
        if self._rate and c.reachable:
            self.objective = self._judged(self._view("latency", c), self._view("throughput", c))
        return self._view(self.objective, c)

    def best(self, view: View) -> Option | None:
        """``view.best()``, searched for only if it may be another one than the last time."""
        objective = view.planner.objective
        last = self._last.get(objective)
        if last is not None and _alike(last[0], view, last[1]):
            return view.price(last[1])
        best = view.best()
        if best is None:
            self._last.pop(objective, None)
        else:
            self._last[objective] = (view, best)
        return best

    def _judged(self, quick: View, many: View) -> str:
        """The objective by the load test; back to latency only with a margin."""
        latency = self.best(quick)
        margin = _LIGHT if self.objective == "throughput" else 1.0
        if latency is None or self._rate * margin <= latency.throughput:
            return "latency"
        most = self.best(many)
        return (
            "latency" if most is None else judge(max(self._rate, latency.throughput * _LIGHT), latency, most).objective
        )

    def _view(self, objective: str, c: Conditions) -> View:
        planner, easier = self._planned(objective, *self._step)
        besides_ms = c.queue_ms + c.overhead_ms
        if c.failing:
            # A request that fails takes as long again: the device then computes all of it.
            besides_ms += c.failing * planner.local(c.link).total.ms
        rtt_ms = min(c.link.rtt_ms + besides_ms, _MOST_MS)
        return View(planner, easier, msgspec.structs.replace(c.link, rtt_ms=rtt_ms))

    def _plan(self, objective: str, device: int, server: int) -> tuple[Planner, Planner]:
        planner = self._base[objective]
        if device or server:
            planner = planner.slowed(exp(device * _STEP), exp(server * _STEP))
        return planner, _without_deadline(planner)


def _without_deadline(planner: Planner) -> Planner:
    """`planner`, or one for the least latency where a deadline may rule out everything."""
    if planner.constraints.deadline_ms is None:
        return planner
    return planner.relaxed(msgspec.structs.replace(planner.constraints, deadline_ms=None), "latency")


def _step(factor: float, current: int) -> int:
    """The step of the grid for a slowdown; the current one while it is near."""
    place = log(min(max(factor, _LEAST_FACTOR), _MOST_FACTOR)) / _STEP
    return current if abs(place - current) <= _LEAVES_STEP else round(place)


def _alike(a: View, b: View, best: Option) -> bool:
    """Whether what is `best` in `a` can be taken for the best in `b`."""
    if a.planner is not b.planner:
        return False
    rates = ((a.link.up_mbps, b.link.up_mbps), (a.link.down_mbps, b.link.down_mbps))
    near = all(abs(x - y) <= _SAME_RATE * x for x, y in rates)
    return near and abs(a.link.rtt_ms - b.link.rtt_ms) <= _SAME_TRIP * best.total.ms
